#include "client/settings.h"

#include <errno.h>
#include <string.h>
#include <sys/auxv.h>

#include <cstdint>

#include "client/sys.h"

namespace kvmem {

constinit Settings g_settings;

namespace {

constexpr std::size_t kThresholdMin = std::size_t{2} << 20;  // one page

const char* lookup(char* const* environment, const char* name) {
  const std::size_t length = strlen(name);
  for (char* const* e = environment; e != nullptr && *e != nullptr; ++e) {
    if (strncmp(*e, name, length) == 0 && (*e)[length] == '=') return *e + length + 1;
  }
  return nullptr;
}

bool is_set(const char* value) {
  return value != nullptr && *value != 0 && strcmp(value, "0") != 0 && strcmp(value, "off") != 0;
}

template <std::size_t kSize>
bool copy(char (&target)[kSize], const char* source) {
  const std::size_t length = strlen(source);
  if (length >= kSize) return false;
  memcpy(target, source, length + 1);
  return true;
}

// The entry may be a path or a name; several are separated by colons or spaces.
bool names_library(const char* preload) {
  static constexpr char kName[] = "libkvmem.so";
  for (const char* p = preload; p != nullptr && (p = strstr(p, kName)) != nullptr; ++p) {
    if (p == preload || strchr("/: ", p[-1]) != nullptr) return true;
  }
  return false;
}

std::size_t parse_bytes(const char* text, std::size_t fallback) {
  std::size_t value = 0;
  const char* p = text;
  for (; *p >= '0' && *p <= '9'; ++p) {
    if (value > SIZE_MAX / 10 - 1) return fallback;
    value = value * 10 + static_cast<std::size_t>(*p - '0');
  }
  if (p == text) return fallback;
  unsigned shift = 0;
  switch (*p) {
    case 'k':
    case 'K':
      shift = 10;
      break;
    case 'm':
    case 'M':
      shift = 20;
      break;
    case 'g':
    case 'G':
      shift = 30;
      break;
    case 0:
      break;
    default:
      return fallback;
  }
  if (value > SIZE_MAX >> shift) return fallback;
  value <<= shift;
  return value < kThresholdMin ? kThresholdMin : value;
}

// "2", "0.5"; 0 for what is no such number.
std::uint64_t parse_seconds(const char* text) {
  constexpr std::uint64_t kSecond = 1'000'000'000;
  std::uint64_t ns = 0;
  std::uint64_t unit = kSecond;
  bool is_fraction = false;
  for (const char* p = text; *p != 0; ++p) {
    if (*p == '.' && !is_fraction) {
      is_fraction = true;
    } else if (*p < '0' || *p > '9' || ns > UINT64_MAX / 20) {
      return 0;
    } else if (is_fraction) {
      ns += static_cast<std::uint64_t>(*p - '0') * (unit /= 10);
    } else {
      ns = ns * 10 + static_cast<std::uint64_t>(*p - '0') * kSecond;
    }
  }
  return ns;
}

bool is_socket_there(const char* path) {
  return sys::call(SYS_faccessat, -100 /* AT_FDCWD */, sys::arg(path), 0 /* F_OK */) == 0;
}

}  // namespace

Settings read_settings(char* const* environment) {
  Settings s;
  const char* mode = lookup(environment, "KVMEM");
  // A program with privileges its caller lacks takes no orders from the caller's environment.
  s.off = getauxval(AT_SECURE) != 0 ||
          (mode != nullptr && (strcmp(mode, "off") == 0 || strcmp(mode, "0") == 0));
  s.intercept = !s.off && (names_library(lookup(environment, "LD_PRELOAD")) ||
                           is_set(lookup(environment, "KVMEM_INTERCEPT")));
  s.verbose = is_set(lookup(environment, "KVMEM_VERBOSE"));
  s.user_faults_only = is_set(lookup(environment, "KVMEM_USER_FAULTS_ONLY"));
  s.device = s.intercept && is_set(lookup(environment, "KVMEM_DEVICE"));
  if (const char* text = lookup(environment, "KVMEM_HBM")) {
    s.hbm_bytes = parse_bytes(text, s.hbm_bytes);
  }
  if (const char* text = lookup(environment, "KVMEM_GPU_CAPACITY")) {
    s.gpu_capacity_bytes = parse_bytes(text, 0);
  }
  if (const char* text = lookup(environment, "KVMEM_GPU_THRESHOLD")) {
    s.gpu_threshold_bytes = parse_bytes(text, s.gpu_threshold_bytes);
  }
  if (const char* text = lookup(environment, "KVMEM_PARK_AFTER")) {
    s.park_after_ns = parse_seconds(text);
  }
  if (const char* text = lookup(environment, "KVMEM_THRESHOLD")) {
    s.threshold_bytes = parse_bytes(text, s.threshold_bytes);
  }
  const char* tag = lookup(environment, "KVMEM_TAG");
  if (tag == nullptr || *tag == 0) tag = program_invocation_short_name;
  if (tag != nullptr) strncpy(s.tag, tag, sizeof s.tag - 1);

  const char* path = lookup(environment, "KVMEM_SOCKET");
  if (path != nullptr && *path != 0) {
    if (!copy(s.socket_path, path)) s.socket_path[0] = 0;  // connecting says so
    return s;
  }
  static constexpr char kBelowRuntime[] = "/kvmem/kvmemd.sock";
  const char* runtime = lookup(environment, "XDG_RUNTIME_DIR");
  if (runtime != nullptr && *runtime == '/' &&
      strlen(runtime) + sizeof kBelowRuntime <= sizeof s.socket_path) {
    memcpy(s.socket_path, runtime, strlen(runtime));
    memcpy(s.socket_path + strlen(runtime), kBelowRuntime, sizeof kBelowRuntime);
    if (s.intercept && is_socket_there(s.socket_path)) return s;
  }
  copy(s.socket_path, "/run/kvmem/kvmemd.sock");
  return s;
}

}  // namespace kvmem
