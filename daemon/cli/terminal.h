// What the terminal can do. Apart from what draws on it: <term.h> names its macros `lines`,
// `columns` and `tone`.
#pragma once

namespace kvmem::cli {

// Standard input and output are one, and by TERM it is of a kind that lines can be placed on.
bool is_screen();

}  // namespace kvmem::cli
