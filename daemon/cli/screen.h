// Screen: the whole terminal, for lines that are drawn again and again. By ncurses, which has one
// screen a process; so there is one of these at a time, and one thread uses it.
//
// The terminal is as it was before whenever none lives, and while it is left().
#pragma once

#include <memory>
#include <vector>

#include "cli/top.h"

namespace kvmem::cli {

enum class Key : unsigned char {
  kNone,
  kOther,
  kQuit,
  kSort,
  kPause,
  kHelp,
  kUp,
  kDown,
  kPageUp,
  kPageDown,
  kHome,
  kEnd,
};

class Screen {
 public:
  // Null: standard input or output is no terminal, or one that lines cannot be placed on.
  static std::unique_ptr<Screen> create(bool colour);
  ~Screen();
  Screen(const Screen&) = delete;
  Screen& operator=(const Screen&) = delete;

  unsigned columns() const;
  unsigned rows() const;
  void draw(const std::vector<Line>& lines);
  Key take_key();  // never waits; kNone: there is none

  void resized();  // the terminal has another size now
  void leave();    // until the next draw() the terminal is the shell's

 private:
  explicit Screen(bool colour);

  bool colour_;
};

}  // namespace kvmem::cli
