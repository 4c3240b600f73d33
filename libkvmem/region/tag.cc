#include "region/tag.h"

#include <string.h>

#include "client/settings.h"

namespace kvmem {
namespace {

thread_local char own[sizeof g_settings.tag];

}  // namespace

const char* tag() { return own[0] != 0 ? own : g_settings.tag; }

void set_tag(const char* text) {
  strncpy(own, text == nullptr ? "" : text, sizeof own - 1);  // the last byte stays zero
}

}  // namespace kvmem
