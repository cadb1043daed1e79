#pragma once

#include <coax/config.hpp>
#include <coax/task/function_name.hpp>
#include <coax/task/loop.hpp>
#include <coax/task/root.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <source_location>
#include <string_view>

namespace coax::inline COAX_ABI {

namespace detail {

/// Prints the tree of tasks, without allocating and without recursion.
class dumper {
 public:
  dumper(const loop& l, std::FILE* to) noexcept : loop_(l), to_(to), now_(loop::tenths(l.now())) {}

  void print() const noexcept {
    std::size_t depth = 0;
    for (const root* at = loop_.roots().first(); at != nullptr;) {
      const std::size_t alike = print_root(*at, depth);
      for (std::size_t i = 1; i < alike; ++i) at = at->next();
      const root_list* inner = branches_of(*at);
      if (inner != nullptr && !inner->empty()) {
        ++depth;
        at = inner->first();
        continue;
      }
      while (at->next() == nullptr) {
        const waiter* const of = at->list()->of();
        if (of == nullptr || of->root() == nullptr) return;
        at = of->root();
        --depth;
      }
      at = at->next();
    }
  }

 private:
  static constexpr std::size_t chain_max = 16;   // tasks of a chain that are printed
  static constexpr std::size_t indent_max = 60;  // what is deeper has its depth in front

  static const root_list* branches_of(const root& r) noexcept {
    const waiter* const w = r.waits_for();
    return w == nullptr ? nullptr : w->branches();
  }

  /// Prints `r`, and says how many follow it that differ only in how long they have waited. Result:
  /// how many that is, with `r`.
  std::size_t print_root(const root& r, std::size_t depth) const noexcept {
    std::uint32_t longest = waited(r);
    std::size_t alike = 1;
    for (const root* next = r.next(); next != nullptr && look_alike(r, *next);
         next = next->next()) {
      ++alike;
      if (waited(*next) > longest) longest = waited(*next);
    }
    indent(depth);
    if (alike > 1) std::fprintf(to_, "%zu x ", alike);
    const promise_base* task = first_to_print(r.innermost());
    if (task == nullptr)
      std::fputs("a branch", to_);
    else
      print_place(*task);
    print_state(r, longest, alike);
    std::fputc('\n', to_);
    for (std::size_t printed = 1; task != nullptr; ++printed) {
      task = first_to_print(task->awaited_by());
      if (task == nullptr) break;
      indent(depth);
      std::fputs("  in ", to_);
      if (printed == chain_max) {
        std::fputs("further tasks\n", to_);
        break;
      }
      print_place(*task);
      std::fputc('\n', to_);
    }
    return alike;
  }

  /// `task`, or the first outward from it that is the user's.
  static const promise_base* first_to_print(const promise_base* task) noexcept {
    while (task != nullptr && function_name(task->where().function_name()).is_internal())
      task = task->awaited_by();
    return task;
  }

  /// Siblings that are one task each and wait for the same thing in the same place.
  static bool look_alike(const root& a, const root& b) noexcept {
    const waiter* const w = a.waits_for();
    const waiter* const v = b.waits_for();
    if (w == nullptr || v == nullptr || w->branches() != nullptr || v->branches() != nullptr)
      return false;
    const waiting_for one = w->describe();
    const waiting_for other = v->describe();
    if (one.fd != other.fd || std::strcmp(one.what, other.what) != 0) return false;
    const promise_base* x = a.innermost();
    const promise_base* y = b.innermost();
    for (std::size_t i = 0; i < chain_max && x != nullptr && y != nullptr; ++i) {
      if (!same_place(x->where(), y->where())) return false;
      x = x->awaited_by();
      y = y->awaited_by();
    }
    return (x == nullptr) == (y == nullptr);
  }
  static bool same_place(const std::source_location& a, const std::source_location& b) noexcept {
    return a.line() == b.line() && a.column() == b.column() &&
           std::strcmp(a.file_name(), b.file_name()) == 0;
  }

  std::uint32_t waited(const root& r) const noexcept {
    return r.waits_for() == nullptr ? 0 : now_ - r.waits_for()->since();
  }

  void indent(std::size_t depth) const noexcept {
    for (std::size_t i = 0; i < depth && i < indent_max; ++i) std::fputs("  ", to_);
    if (depth > indent_max) std::fprintf(to_, "[%zu] ", depth);
  }

  void print_place(const promise_base& task) const noexcept {
    const std::source_location at = task.where();
    if (at.line() == 0) {
      std::fputs("a task at its start", to_);
      return;
    }
    const function_name function(at.function_name());
    if (function.lambda_in) std::fputs("lambda in ", to_);
    print_name(function.name);
    std::fprintf(to_, " (%s:%u)", file_of(at), static_cast<unsigned>(at.line()));
  }

  /// Without the namespace that nobody writes, see config.hpp.
  void print_name(std::string_view name) const noexcept {
    constexpr std::string_view unwritten = COAX_ABI_TEXT "::";
    for (std::size_t end = 0; end != name.npos;) {
      end = name.find(unwritten);
      const std::string_view part = name.substr(0, end);
      std::fprintf(to_, "%.*s", static_cast<int>(part.size()), part.data());
      if (end != name.npos) name.remove_prefix(end + unwritten.size());
    }
  }

  void print_state(const root& r, std::uint32_t tenths, std::size_t alike) const noexcept {
    const waiter* const w = r.waits_for();
    if (w == nullptr) {
      std::fputs(&r == loop_.running_root()                    ? " runs"
                 : r.current_phase() == root::phase::unstarted ? ": not started yet"
                 : r.current_phase() == root::phase::unwinding ? ": being unwound"
                                                               : ": ready to run",
                 to_);
    } else {
      const waiting_for what = w->describe();
      std::fprintf(to_, " waits for %s", what.what);
      if (what.fd >= 0) std::fprintf(to_, " on descriptor %d", what.fd);
      std::fprintf(to_, ", %s%u.%u s", alike > 1 ? "up to " : "", tenths / 10, tenths % 10);
    }
    if (r.cancelled()) std::fputs(r.stopping() ? ", cancelled" : ", cancelled but shielded", to_);
  }

  const loop& loop_;
  std::FILE* to_;
  std::uint32_t now_;
};

}  // namespace detail

/// Prints the tree of tasks that `l` runs: for each where it awaits (function, file, line), what it
/// waits for and for how long, and below it the branches and children it waits for. Tasks that differ
/// only in how long they have waited share a line.
///
/// Allocates nothing (unless `to` does) and needs no stack. Coroutines of other kinds than coax::task
/// are not seen.
///
/// Thread    the reactor's: from a task of its, for example one that waits for a signal.
inline void dump(const loop& l, std::FILE* to = stderr) noexcept {
  detail::dumper(l, to).print();
  std::fflush(to);
}

}  // namespace coax::inline COAX_ABI
