// NewFile: a file that is there whole or not at all: written beside its place, then renamed.
#pragma once

#include <string>
#include <string_view>

#include "base/unique_handle.h"

namespace kvmem::cli {

class NewFile {
 public:
  NewFile() = default;
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  // What is at `path` stays until write(). Both give an error to show, or nothing.
  std::string open(const std::string& path);
  std::string write(std::string_view content);  // once

 private:
  std::string path_;
  std::string temporary_;  // empty: there is none
  UniqueFd fd_;
};

}  // namespace kvmem::cli
