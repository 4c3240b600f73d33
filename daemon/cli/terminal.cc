#include "cli/terminal.h"

#include <curses.h>
#include <term.h>
#include <unistd.h>

#include <cstdlib>

namespace kvmem::cli {

bool is_screen() {
  const char* const term = std::getenv("TERM");  // NOLINT(concurrency-mt-unsafe): one thread
  if (::isatty(STDIN_FILENO) != 1 || ::isatty(STDOUT_FILENO) != 1) return false;
  if (term == nullptr || *term == '\0') return false;
  int error = 0;
  if (::setupterm(nullptr, STDOUT_FILENO, &error) != OK) return false;
  char name[] = "cup";  // to place the cursor
  const char* const place = ::tigetstr(name);
  const bool places = place != nullptr && place != reinterpret_cast<char*>(-1);
  ::del_curterm(cur_term);
  return places;
}

}  // namespace kvmem::cli
