#!/usr/bin/env bash
# Makes packages for machines without Rust, in dist/:
#
#   result-cleaner-VERSION-TARGET.tar.gz   the static binary, manual pages, completions, units, documentation
#   result-cleaner_VERSION_ARCH.deb        the same for Debian and Ubuntu; needs cargo-deb
#   result_cleaner-VERSION-….whl           the Python package; installs maturin and zig below target/
#   SHA256SUMS
#
# contrib/dist.sh --quick makes the first two from an unoptimized binary, to test them.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

quick=
case ${1-} in
    '') ;;
    --quick) quick=yes ;;
    *) echo "usage: contrib/dist.sh [--quick]" >&2 && exit 2 ;;
esac

skip() { echo "skipped: $*" >&2; }

# ---- The binary, which needs no library of the system.

# cargo-deb takes its files from here, whatever the target directory is: see Cargo.toml.
stage=target/package
rm -rf "$stage" dist
mkdir -p "$stage" dist

version=$(cargo pkgid) && version=${version##*[#@]}
host=$(rustc -vV | sed -n 's/^host: //p')
target=${host%-gnu}-musl
flags=${RUSTFLAGS-}
link=()
if ! [ -d "$(rustc --print target-libdir --target "$target")" ] || ! command -v musl-gcc >/dev/null; then
    target=$host
    flags="${flags:+$flags }-C target-feature=+crt-static"
    "${CC:-cc}" -O -c -o "$stage/static-names.o" contrib/static-names.c
    link=(-C "link-arg=$PWD/$stage/static-names.o")
fi
profile=release
[ -z "$quick" ] || profile=dev
# With --target, build scripts and macros are compiled without these flags.
RUSTFLAGS=$flags CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_PROFILE_DEV_STRIP=symbols \
    cargo rustc --locked --profile "$profile" --target "$target" --bin result-cleaner -- "${link[@]}"
built=${CARGO_TARGET_DIR:-target}/$target/${profile/dev/debug}/result-cleaner
if ldd "$built" 2>&1 | grep -q '=>'; then
    echo "$built is not static" >&2 && exit 1
fi

export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}

# ---- What is installed, below the directory $1, to be used below $2.

lay_out() {
    local root=$1 prefix=$2 unit
    install -D -t "$root/bin" "$built"

    mkdir -p "$root/share/man/man1" && "$built" man --dir "$root/share/man/man1"
    local completions=$root/share/bash-completion/completions/result-cleaner
    mkdir -p "${completions%/*}" && "$built" completions bash >"$completions"
    # Debian's zsh reads another directory than the one for what is installed locally.
    completions=$root/share/zsh/site-functions/_result-cleaner
    [ "$prefix" != /usr ] || completions=$root/share/zsh/vendor-completions/_result-cleaner
    mkdir -p "${completions%/*}" && "$built" completions zsh >"$completions"
    completions=$root/share/fish/vendor_completions.d/result-cleaner.fish
    mkdir -p "${completions%/*}" && "$built" completions fish >"$completions"

    mkdir -p "$root/lib/systemd/system" "$root/lib/systemd/user"
    for unit in system/result-cleaner.service system/result-cleaner@.service user/result-cleaner.service; do
        sed -e "s,/usr/local/bin/,$prefix/bin/," -e "s,%h/.cargo/bin/,$prefix/bin/," \
            "contrib/systemd/${unit#system/}" >"$root/lib/systemd/$unit"
    done
    install -D -m 644 -t "$root/lib/sysusers.d" contrib/systemd/sysusers.d/result-cleaner.conf

    local documents=$root/share/doc/result-cleaner
    install -D -m 644 -t "$documents" README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE
    install -D -m 644 -t "$documents/docs" docs/*
    install -D -m 644 -t "$documents/examples/prometheus" contrib/prometheus/*
    install -D -m 644 -t "$documents/examples/grafana" contrib/grafana/*
    third_party >"$documents/THIRD-PARTY"
}

# Prints the licences of everything that is linked into the binary, each text once.
third_party() {
    local sources=${CARGO_HOME:-$HOME/.cargo}/registry/src crate terms file sum
    declare -A users texts
    echo "result-cleaner is linked with the Rust standard library (MIT OR Apache-2.0), the C library of"
    echo "$target, and these crates. The source of each is on crates.io, under its name and version."
    echo
    while IFS='|' read -r crate terms; do
        crate=${crate% (*)}
        [ "${crate%% *}" != result-cleaner ] || continue
        echo "$crate: $terms"
        for file in "$sources"/*/"${crate/ v/-}"/{LICEN[CS]E,COPYING,COPYRIGHT,NOTICE}*; do
            [ -f "$file" ] || continue
            sum=$(sha256sum <"$file")
            users[$sum]+="${users[$sum]:+, }$crate"
            texts[$sum]=$file
        done
    done < <(cargo tree --locked -e normal --target "$target" --prefix none --no-dedupe -f '{p}|{l}' | sort -u)
    for sum in $(printf '%s\n' "${!texts[@]}" | cut -d' ' -f1 | sort); do
        sum="$sum  -"
        printf '\n%s\n%s:\n\n' "$(printf -- '-%.0s' {1..100})" "${users[$sum]}"
        cat "${texts[$sum]}"
    done
}

# ---- The archive.

name=result-cleaner-$version-$target
lay_out "$stage/$name" /usr/local
install -m 644 contrib/default/result-cleaner "$stage/$name/share/doc/result-cleaner/examples/default"
# Without the directories, so that unpacking changes none that is there.
(cd "$stage" && find "$name" -type f -print0 | LC_ALL=C sort -z) |
    tar -C "$stage" --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
        --create --null --files-from=- | gzip -9n >"dist/$name.tar.gz"

# ---- The package for Debian.

if cargo deb --version >/dev/null 2>&1; then
    lay_out "$stage/usr" /usr
    cargo deb --locked --no-build --no-strip --output dist/ >/dev/null
else
    skip "no .deb: cargo install cargo-deb"
fi

# ---- The Python package. zig links it for every glibc since 2.17.

tools=target/tools/wheel
if [ -n "$quick" ] || ! [ -e bindings/python/pyproject.toml ]; then
    skip "no wheel"
elif [ -x $tools/bin/maturin ] ||
    { python3 -m venv $tools && $tools/bin/pip install -q maturin==1.16.0 ziglang==0.17.1; }; then
    PATH=$PWD/$tools/bin:$PATH maturin build --release --locked --zig --compatibility manylinux2014 \
        --manifest-path bindings/python/Cargo.toml --out dist
else
    skip "no wheel: maturin and zig could not be installed"
fi

# ---- A first try: each binary deletes an expired result in a root that has nothing else.

try() {
    local root=$1 command=$2
    mkdir "$root/cache"
    : >"$root/cache/a.result.json.lz4"
    echo '{"expires_at": 1}' >"$root/cache/a.metadata.json"
    chroot "$root" "$command" sweep /cache
    rmdir "$root/cache"
}
if [ "$(id -u)" = 0 ]; then
    mkdir "$stage/archive" "$stage/debian"
    tar -C "$stage/archive" --strip-components=1 -xf "dist/$name.tar.gz"
    try "$stage/archive" /bin/result-cleaner
    if compgen -G 'dist/*.deb' >/dev/null; then
        dpkg-deb -x dist/*.deb "$stage/debian"
        try "$stage/debian" /usr/bin/result-cleaner
    fi
else
    skip "the binaries were not tried in an empty root: only root can"
fi

(cd dist && sha256sum -- * >SHA256SUMS && ls -l)
