# keel's front door. Each target does its own set-up; `make help` lists them.

# rustup puts cargo here; a shell started before it was installed does not know.
export PATH := $(HOME)/.cargo/bin:$(PATH)
BARE := aarch64-unknown-none-softfloat
LINUX := aarch64-unknown-linux-musl
# Another hypervisor to measure beside keel, as in: make bench PEER=kvm
PEER ?=
# More for cargo keel, as in: make linux ARGS="--smp 4 --keel-args keel.loglevel=debug"
ARGS ?=

.PHONY: help run test linux oracle check debug image bench fetch clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: setup-run ## boot keel with the demonstration guest linked into it
	@cargo keel run --timeout 120 $(ARGS)

test: setup-test fetch-if-possible ## run every test: on the host, then in QEMU
	cargo test --quiet -p keel -p keel-qemu --lib --bins --test layers
	cargo test --quiet -p keel-kvm
	cargo test -p keel-qemu --test qemu

linux: setup-run fetch ## boot Debian's kernel to an interactive shell (Ctrl-A x quits)
	@cargo keel run --kernel build/guests/linux-6.12/Image --initrd build/guests/initramfs.cpio \
		--append "console=ttyAMA0 quiet" --cpus 2 $(ARGS)

oracle: setup-test fetch ## compare keel's answers to guests with those of Debian's KVM, line by line
	@cargo keel oracle $(ARGS)

check: setup-check ## formatting, lints for host and target, documentation; warnings are errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy -p keel --lib --bins --target $(BARE) -- -D warnings
	cargo clippy -p keel-test-kernel --bins --target $(BARE) -- -D warnings
	cargo clippy -p keel-oracle --target $(LINUX) -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items
	RUSTDOCFLAGS="-D warnings" cargo doc -p keel --lib --target $(BARE) --no-deps --document-private-items
	cargo test --quiet -p keel-qemu --test layers

debug: setup-run ## boot keel stopped at its first instruction, under gdb or lldb with its symbols
	@cargo keel debug $(ARGS)

image: setup-run ## build build/keel.img, build/keel-stub.img and their ELF files
	@cargo keel image

bench: setup-run $(if $(PEER),setup-test fetch) ## count instructions and compare them with their limits; PEER=kvm: and with KVM's
	@cargo keel bench $(addprefix --peer ,$(PEER)) $(ARGS)

fetch: setup-run ## bring Debian's kernels and busybox into build/guests
	@cargo keel fetch debian

clean: ## remove everything that was built or fetched
	cargo clean
	rm -rf build

.PHONY: setup-run setup-test setup-check fetch-if-possible
# The host tool is compiled here, where cargo shows that it is at work.
setup-run:
	@sh qemu/setup.sh run
	@cargo build --package keel-qemu

setup-test:
	@sh qemu/setup.sh test
	@cargo build --package keel-qemu

setup-check:
	@sh qemu/setup.sh check

fetch-if-possible: setup-run
	@cargo keel fetch debian || echo "going on without Debian's kernels; the tests that need them will be skipped"
