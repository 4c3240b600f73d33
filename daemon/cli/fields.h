// Fields of the daemon's JSON, which may lack any of them or have them of another type: those are
// 0, empty or nothing, so that a kvmemctl reads an older or newer daemon.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace kvmem::cli::fields {

std::uint64_t number(const nlohmann::json& object, const char* key);  // negative: 0
double real(const nlohmann::json& object, const char* key, double otherwise = 0);
bool has(const nlohmann::json& object, const char* key);  // and it is not null
bool is_true(const nlohmann::json& object, const char* key);
// Text fit for a terminal, also of a number or truth value; empty when missing.
std::string text(const nlohmann::json& object, const char* key);
const nlohmann::json& array(const nlohmann::json& object, const char* key);
const nlohmann::json& member(const nlohmann::json& object, const char* key);

}  // namespace kvmem::cli::fields
