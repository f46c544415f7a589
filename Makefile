# What a developer types; the work is in scripts/.
#
#   make               build the static release binary, linked as ./ktstr
#   make demo          from nothing to a verdict: tools, binary, a Debian kernel, one run
#   make test          all tests; kernels and the emulated host are fetched once into the cache
#   make bench         how fast guests boot, against QEMU; PARTS="outside boot vcpus parallel measures", ROUNDS=3
#   make soak          200 VM runs in a row (SOAK_RUNS=N): no wrong verdict, nothing left, nothing that grows
#   make selftest      play the matrix of faults (docs/faults.md) and the catalogue's (docs/scenarios.md); about half an hour
#   make fuzz          coverage-guided fuzzing of all hostile input, FUZZ_SECONDS (60) a target
#   make prepush       what CI runs: fmt, clippy, build, check-binary, test
#   make check-binary  assert that the binary is static and small
#   make install       copy it to $(DESTDIR)$(PREFIX)/bin
#   make clean         remove what was built; the cache stays (make clean-cache)

PREFIX ?= /usr/local
FUZZ_SECONDS ?= 60
CARGO ?= $(shell command -v cargo || echo $(HOME)/.cargo/bin/cargo)

.PHONY: build demo test soak bench selftest fuzz prepush fmt clippy check-binary install clean clean-cache help

build:
	@scripts/build

demo:
	@scripts/demo

test:
	@scripts/test

bench: build
	@scripts/emulated-host -p
	@$(CARGO) bench -q --locked --bench boot

soak: build
	@KTSTR_BIN=$(CURDIR)/ktstr scripts/soak

selftest: build
	@scripts/selftest

fuzz:
	@scripts/fuzz -s $(FUZZ_SECONDS)

prepush: fmt clippy build check-binary test

fmt:
	$(CARGO) fmt --check

clippy:
	$(CARGO) clippy --locked --all-targets -- -D warnings

check-binary: build
	@scripts/check-binary ktstr

install:
	@test -e ktstr || { echo "run make first" >&2; exit 1; }
	install -D -m 755 ktstr "$(DESTDIR)$(PREFIX)/bin/ktstr"

clean:
	$(CARGO) clean
	rm -f ktstr

clean-cache:
	rm -rf "$${KTSTR_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/ktstr}"

help:
	@sed -n 's/^#   //p' Makefile

#   make bench-workload  the workload engine against tracepoints and other tools; PARTS="spin memory thousand trace exchanges timers"
.PHONY: bench-workload
bench-workload:
	@CARGO_PROFILE_BENCH_OPT_LEVEL=z CARGO_PROFILE_BENCH_LTO=fat CARGO_PROFILE_BENCH_CODEGEN_UNITS=1 \
		$(CARGO) bench -q --locked --target "$$(scripts/build --target-only)" --bench workload

#   make miri          the shared memory of the engine under Miri (a nightly toolchain with miri and rust-src)
.PHONY: miri
miri:
	MIRIFLAGS=-Zmiri-disable-isolation $(CARGO) +nightly miri test --locked --lib -- workload::slot workload::ring
