#pragma once

#include <coax/config.hpp>

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

namespace coax::inline COAX_ABI::detail {

/// The values of the task_local variables of a task, shared with the children that inherit them until
/// one of them changes a value.
///
/// Thread    one: those that share a table belong to one loop.
class locals {
 public:
  using value = std::shared_ptr<const void>;

  const void* find(const void* variable) const noexcept {
    for (const entry& e : entries_)
      if (e.variable == variable) return e.held.get();
    return nullptr;
  }
  void set(const void* variable, value v) {
    for (entry& e : entries_)
      if (e.variable == variable) return e.held.swap(v);
    entries_.push_back({variable, std::move(v)});
  }

 private:
  friend class locals_reference;
  struct entry {
    const void* variable;
    value held;
  };
  std::vector<entry> entries_;
  std::size_t references_ = 1;
};

/// A share in a table; none, as long as nothing was ever set.
class locals_reference {
 public:
  locals_reference() = default;
  locals_reference(const locals_reference& other) noexcept : table_(other.table_) {
    if (table_ != nullptr) ++table_->references_;
  }
  locals_reference& operator=(const locals_reference& other) noexcept {
    locals_reference copy(other);
    std::swap(table_, copy.table_);
    return *this;
  }
  ~locals_reference() {
    if (table_ != nullptr) give_up();
  }

  const void* find(const void* variable) const noexcept {
    return table_ == nullptr ? nullptr : table_->find(variable);
  }
  /// Sets it here, and for nobody else who shares the table. Errors: std::bad_alloc.
  void set(const void* variable, locals::value v) {
    if (table_ == nullptr) {
      table_ = new locals;
    } else if (table_->references_ != 1) {
      auto own = std::make_unique<locals>();
      own->entries_ = table_->entries_;
      --table_->references_;
      table_ = own.release();
    }
    table_->set(variable, std::move(v));
  }

 private:
  [[gnu::noinline]] void give_up() noexcept {
    if (--table_->references_ == 0) delete table_;
  }

  locals* table_ = nullptr;
};

}  // namespace coax::inline COAX_ABI::detail
