# shellcheck shell=bash
# Sourced by the scripts that build: `need PACKAGE...` installs those Debian packages that are missing, and
# `set_up FOLDER OPTION...` makes a build folder.

# What counts is that the thing works, not who installed it: other systems have no packages of these names.
have() {
  case $1 in
    ninja-build) command -v ninja ;;
    catch2) pkg-config --exists catch2 ;;
    liburing-dev) pkg-config --exists liburing ;;
    llvm-*) command -v "llvm-symbolizer-${1#llvm-}" ;; # what gives a sanitizer's stacks their names
    *-dev) [[ $(dpkg-query -W -f '${db:Status-Status}' "$1") == installed ]] ;;
    *) command -v "$1" ;;
  esac >/dev/null 2>&1
}

need() {
  local package missing=() as_root=() log
  for package; do
    have "$package" || missing+=("$package")
  done
  if ((${#missing[@]} == 0)); then return 0; fi

  if ! command -v apt-get >/dev/null; then
    echo "Missing, and there is no apt-get to install it (Debian's names): ${missing[*]}" >&2
    return 1
  fi
  if ((EUID != 0)); then
    if ! command -v sudo >/dev/null; then
      echo "Missing, and only root can install it: apt-get install ${missing[*]}" >&2
      return 1
    fi
    as_root=(sudo)
  fi

  echo "installing ${missing[*]} ..." >&2
  log=$(mktemp)
  # A machine that has just booted may still be updating itself: wait for its lock.
  local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300)
  # Lists that are old, or partly out of reach, may still do: only the installation decides.
  "${apt[@]}" update >"$log" 2>&1 || true
  if ! "${apt[@]}" install --no-install-recommends "${missing[@]}" >>"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    rm "$log"
    echo "Could not install ${missing[*]}" >&2
    return 1
  fi
  rm "$log"
}

# `meson setup` of the tree $top, unless that was done. A folder whose setup was interrupted, that another Meson made, or
# that was moved or copied here with its tree, is made anew: Meson only says that it cannot use it, or uses the other tree.
# shellcheck disable=SC2094,SC2154 # a lock, which holds what was done; $top is of who sources this
set_up() {
  local folder=$1 note=$1.set-up
  shift
  mkdir -p "$(dirname "$folder")" && (
    flock 8 && made_as="$(realpath "$(dirname "$folder")") $(meson --version)" || exit
    # The last file that Meson writes. Who has set it up by hand has not said how, and is left alone.
    if [[ -f $folder/build.ninja && -f $folder/meson-info/meson-info.json &&
      (! -s $note || $(<"$note") == "$made_as") ]]; then exit 0; fi
    rm -rf "$folder" && meson setup "$folder" "$top" "$@" && echo "$made_as" >"$note"
  ) 8>>"$note"
}

# Sets `clang` and `clang_format`: 19 where it can be had, else another; before 16 its coroutines are not up to it.
# shellcheck disable=SC2034 # read by who sources this
find_clang() {
  local version
  clang="clang++"
  clang_format="clang-format"
  for version in 19 22 21 20 18 17 16; do
    if need "clang-$version" "libclang-rt-$version-dev" "llvm-$version"; then
      clang=clang++-$version
      if need "clang-format-$version"; then clang_format=clang-format-$version; fi
      return 0
    fi
  done
  echo "There is no clang from 16 on to be had: the steps that use it will fail." >&2
}
