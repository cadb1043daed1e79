#pragma once

#include <coax/config.hpp>

#include <cstddef>
#include <string_view>

namespace coax::inline COAX_ABI::detail {

/// The name of a function, out of what a compiler puts into a std::source_location: without types,
/// arguments and template arguments. Points into what it was made of.
///
///     coax::task<void> app::serve(int) [with T = int]     g++
///     void app::serve(serve(int)::_ZN3app5serveEi.Frame*) g++ 12, in a coroutine
///     auto serve()::(anonymous class)::operator()() const  clang, in a lambda
struct function_name {
  std::string_view name;
  bool lambda_in = false;  ///< it is a lambda in the function of that name

  explicit function_name(std::string_view full) noexcept {
    // "[with T = int]" stands last.
    if (const std::size_t with = full.find(" ["); with != full.npos) full = full.substr(0, with);
    name = without_arguments(full);
    while (take_end(name, "::operator()") || is_gcc_lambda(name)) {
      lambda_in = true;
      if (!take_end(name, "::(anonymous class)")) take_last_part(name);
      name = without_arguments(name);
    }
    name = without_template_arguments(without_return_type(name));
  }

  /// It belongs to coax itself, and says nothing to a person.
  bool is_internal() const noexcept { return name.find("::detail::") != name.npos; }

 private:
  static bool take_end(std::string_view& text, std::string_view end) noexcept {
    if (!text.ends_with(end)) return false;
    text.remove_suffix(end.size());
    return true;
  }

  /// Where the bracket that ends `text` was opened.
  static std::size_t opened(std::string_view text) noexcept {
    int depth = 0;
    for (std::size_t i = text.size(); i-- > 0;) {
      const char c = text[i];
      const bool arrow = c == '>' && i > 0 && text[i - 1] == '-';
      if (c == ')' || (c == '>' && !arrow)) ++depth;
      if ((c == '(' || c == '<') && --depth == 0) return i;
    }
    return 0;
  }

  static std::string_view without_arguments(std::string_view text) noexcept {
    const std::size_t end = text.rfind(')');
    if (end == text.npos) return text;
    const std::string_view behind = text.substr(end + 1);
    if (!behind.empty() && behind.front() != ' ') return text;  // the last part has none
    text = text.substr(0, end + 1);
    return text.ends_with("::operator()") ? text : text.substr(0, opened(text));
  }

  static std::string_view without_template_arguments(std::string_view text) noexcept {
    return text.ends_with('>') ? text.substr(0, opened(text)) : text;
  }

  static bool is_gcc_lambda(std::string_view text) noexcept {
    return text.ends_with('>') && text.substr(opened(text)).starts_with("<lambda");
  }

  /// Of `serve(int)::<lambda(int)>` leaves `serve(int)`.
  static void take_last_part(std::string_view& text) noexcept {
    text = without_template_arguments(text);
    take_end(text, "::");
  }

  static std::string_view without_return_type(std::string_view text) noexcept {
    int depth = 0;
    for (std::size_t i = text.size(); i-- > 0;) {
      const char c = text[i];
      if (c == ')' || c == '>') ++depth;
      if (c == '(' || c == '<') --depth;
      if (c == ' ' && depth == 0) return text.substr(i + 1);
    }
    return text;
  }
};

}  // namespace coax::inline COAX_ABI::detail
