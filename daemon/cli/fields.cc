#include "cli/fields.h"

#include <algorithm>

#include "cli/text.h"

namespace kvmem::cli::fields {

using nlohmann::json;

std::uint64_t number(const json& object, const char* key) {
  if (!object.is_object()) return 0;
  const auto it = object.find(key);
  if (it == object.end() || !it->is_number()) return 0;
  if (it->is_number_float()) {  // which may be any number, and not one
    constexpr double kMost = 1e18;
    const double value = it->get<double>();
    return value > 0 ? static_cast<std::uint64_t>(std::min(value, kMost)) : 0;
  }
  if (it->is_number_unsigned()) return it->get<std::uint64_t>();
  return it->get<std::int64_t>() < 0 ? 0 : static_cast<std::uint64_t>(it->get<std::int64_t>());
}

double real(const json& object, const char* key, double otherwise) {
  if (!object.is_object()) return otherwise;
  const auto it = object.find(key);
  return it != object.end() && it->is_number() ? it->get<double>() : otherwise;
}

bool has(const json& object, const char* key) {
  return object.is_object() && object.contains(key) && !object.at(key).is_null();
}

bool is_true(const json& object, const char* key) {
  return has(object, key) && object.at(key).is_boolean() && object.at(key).get<bool>();
}

std::string text(const json& object, const char* key) {
  if (!has(object, key)) return "";
  const json& value = object.at(key);
  if (value.is_string()) return printable(value.get_ref<const std::string&>());
  if (value.is_number_float()) return format("%.3g", value.get<double>());
  if (value.is_primitive()) return printable(value.dump());
  return "";
}

const json& array(const json& object, const char* key) {
  static const json none = json::array();
  if (!object.is_object()) return none;
  const auto it = object.find(key);
  return it != object.end() && it->is_array() ? *it : none;
}

const json& member(const json& object, const char* key) {
  static const json none = json::object();
  if (!object.is_object()) return none;
  const auto it = object.find(key);
  return it != object.end() && it->is_object() ? *it : none;
}

}  // namespace kvmem::cli::fields
