#define NCURSES_NOMACROS 1  // its names are everybody's

#include "cli/screen.h"

#include <curses.h>
#include <langinfo.h>
#include <locale.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "cli/terminal.h"

namespace kvmem::cli {
namespace {

constexpr short kFirstPair = 1;

struct Look {
  attr_t attributes;
  short colour;  // -1: the terminal's own
};

Look look_of(Tone tone) {
  switch (tone) {
    case Tone::kPlain:
      return {A_NORMAL, -1};
    case Tone::kTitle:
      return {A_BOLD, -1};
    case Tone::kHeading:
      return {A_BOLD, COLOR_CYAN};
    case Tone::kFaint:
      return {A_DIM, -1};
    case Tone::kGood:
      return {A_NORMAL, COLOR_GREEN};
    case Tone::kWarning:
      return {A_NORMAL, COLOR_YELLOW};
    case Tone::kBad:
      return {A_BOLD, COLOR_RED};
  }
  return {A_NORMAL, -1};
}

// What a terminal that shows no UTF-8 can show.
std::string ascii(const std::string& s) {
  std::string out;
  for (const char c : s) {
    if ((c & 0x80) == 0) {
      out += c;
    } else if ((c & 0xC0) != 0x80) {
      out += '?';
    }
  }
  return out;
}

}  // namespace

std::unique_ptr<Screen> Screen::create(bool colour) {
  if (!is_screen()) return nullptr;
  ::setlocale(LC_CTYPE, "");  // NOLINT(concurrency-mt-unsafe): one thread
  if (::initscr() == nullptr) return nullptr;
  return std::unique_ptr<Screen>(new Screen(colour));
}

Screen::Screen(bool colour) : colour_(colour && ::has_colors()) {
  ::cbreak();
  ::noecho();
  ::nonl();
  ::keypad(stdscr, TRUE);
  ::nodelay(stdscr, TRUE);
  ::set_escdelay(25);
  ::curs_set(0);
  if (!colour_) return;
  ::start_color();
  ::use_default_colors();
  for (short c = 0; c < 8; ++c) ::init_pair(static_cast<short>(kFirstPair + c), c, -1);
}

Screen::~Screen() { ::endwin(); }

unsigned Screen::columns() const { return static_cast<unsigned>(std::max(0, ::getmaxx(stdscr))); }
unsigned Screen::rows() const { return static_cast<unsigned>(std::max(0, ::getmaxy(stdscr))); }

void Screen::draw(const std::vector<Line>& lines) {
  const char* const charset = ::nl_langinfo(CODESET);  // NOLINT(concurrency-mt-unsafe): one thread
  const bool utf8 = std::strcmp(charset, "UTF-8") == 0;
  ::werase(stdscr);
  for (std::size_t y = 0; y < lines.size() && y < rows(); ++y) {
    ::wmove(stdscr, static_cast<int>(y), 0);
    for (const Span& span : lines[y]) {
      const Look look = look_of(span.tone);
      const bool coloured = colour_ && look.colour >= 0;
      const auto pair = static_cast<short>(coloured ? kFirstPair + look.colour : 0);
      ::wattr_set(stdscr, look.attributes, pair, nullptr);
      // A character of two columns may be cut at the edge; it never goes on in the next line.
      const int room = ::getmaxx(stdscr) - ::getcurx(stdscr);
      if (::getcury(stdscr) != static_cast<int>(y) || room <= 0) break;
      const std::string text = utf8 ? span.text : ascii(span.text);
      ::waddnstr(stdscr, text.c_str(), static_cast<int>(text.size()));
    }
  }
  ::wattr_set(stdscr, A_NORMAL, 0, nullptr);
  ::wrefresh(stdscr);
}

Key Screen::take_key() {
  switch (::wgetch(stdscr)) {
    case ERR:
      return Key::kNone;
    case 'q':
    case 'Q':
      return Key::kQuit;
    case 's':
      return Key::kSort;
    case 'p':
      return Key::kPause;
    case 'h':
    case '?':
      return Key::kHelp;
    case KEY_UP:
    case 'k':
      return Key::kUp;
    case KEY_DOWN:
    case 'j':
      return Key::kDown;
    case KEY_PPAGE:
      return Key::kPageUp;
    case KEY_NPAGE:
    case ' ':
      return Key::kPageDown;
    case KEY_HOME:
      return Key::kHome;
    case KEY_END:
      return Key::kEnd;
    default:
      return Key::kOther;
  }
}

void Screen::resized() {
  winsize size{};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row == 0 || size.ws_col == 0)
    return;
  ::resizeterm(size.ws_row, size.ws_col);
  ::clearok(curscr, TRUE);  // what the terminal made of its lines is not known
}

void Screen::leave() { ::endwin(); }

}  // namespace kvmem::cli
