# clawfs: two commands do everything on a fresh Debian machine with Go:
#   sudo make demo    install what is missing, build, run the main job on real input
#   sudo make test    the whole suite
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
MAKEFLAGS += --no-print-directory

# sudo often drops /usr/local/go/bin from PATH.
GO := $(shell command -v go || echo /usr/local/go/bin/go)
export PATH := $(dir $(GO)):$(PATH)
export GOTOOLCHAIN := local

# What the build and the suite need from Debian, each with its reason.
#   fuse3                 fusermount3 and the mount helper
#   gcc libc6-dev         cgo: runc's namespace entry, the race detector
#   libseccomp-dev pkg-config   runc's seccomp filter
#   git                   the source of a ledger
#   fsverity              known answers for the fs-verity digest
#   attr                  getfattr: the reason of a refusal without clawfs
#   e2fsprogs             mke2fs: the bounded /out of a build
#   xfsprogs mount        a source whose files can be cloned, and the power losses, in tests
#   fio                   reads through the mount in each of its ways, in tests
#   qemu-user-static      the arm64 run of the hashing tests
#   mmdebstrap zstd       environment images of the examples
#   fasttext              the unmodified client of examples/langid
#   strace                calls that fail or are slow, in tests
#   jq openssl openssh-client procps perl   tests of the command line, of keys, agents and signer programs, the demos
#   shellcheck            lint
DEBS := ca-certificates git make gcc libc6-dev libseccomp-dev pkg-config fuse3 fsverity attr e2fsprogs \
        xfsprogs mount fio strace \
        jq openssl openssh-client perl procps qemu-user-static mmdebstrap zstd xz-utils fasttext shellcheck

# What only the tests with other people's programs need (make clients):
#   python3-torch python3-numpy python3-xgboost python3-h5py   programs that load models
#   python3-onnx   writes the models of the ONNX Runtime, which is an npm package as llama.cpp is
#   rsync          copies a model
#   nodejs npm     only where no other npm is
# nginx is unpacked and not installed, for its installation starts a web server.
CLIENT_DEBS := python3-torch python3-numpy python3-xgboost python3-h5py python3-onnx rsync \
               $(if $(shell command -v npm),,nodejs npm)

# A Slurm cluster for the tests of rebuild/engine/slurm. What starts daemons is
# unpacked and not installed; the rest is libraries.
SLURM_UNPACKED := slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge libmunge2 liblua5.1-0
SLURM_DEBS     := libhwloc15 libjson-c5 libyaml-0-2 libdbus-1-3 libnuma1 liblz4-1 libreadline8 libpam0g libgcrypt20 libbz2-1.0 zlib1g util-linux

# What make test-verity needs beside them.
#   qemu-system-x86       a machine for a kernel that has fs-verity
#   btrfs-progs           its disks, beside those of e2fsprogs
#   busybox-static cpio kmod   what it boots
VERITY_DEBS := qemu-system-x86 btrfs-progs busybox-static cpio kmod

# What the benchmark compares with.
BENCH_DEBS := bindfs gocryptfs

GOBUILD := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=auto
UNIT    := ./...

# Servers that tests run as processes on loopback (make servers). Unpacked like
# nginx, and for the same reason.
#   docker-registry           the distribution registry: environment images
#   openssh-server libwrap0   sshd: the source of a ledger over ssh
SERVER_DEBS := docker-registry openssh-server libwrap0

.PHONY: deps clients client-deps servers slurm slurm-deps build install demo demo-torch demo-xgboost demo-quantize demo-quorum demo-all test test-arm64 test-verity race faults soak lint fuzz mutate bench repro ci clean tools

# $(call install,PACKAGES) installs those that are missing.
define install
	@missing=$$(for p in $(1); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'install ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" != 0 ]; then echo "missing Debian packages:" $$missing; echo "next: sudo make $@"; exit 1; fi; \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	fi
endef

deps: ## install missing Debian packages
	$(call install,$(DEBS))
	@command -v $(GO) >/dev/null || { echo "no go program: install Go 1.26 or newer"; exit 1; }

CLIENTS := fs/testdata/clients

clients: build/clients/nginx build/clients/node_modules/.package-lock.json ## programs of other people, for the tests of fs

client-deps: deps
	$(call install,$(CLIENT_DEBS))

build/clients/nginx: | client-deps
	@mkdir -p build/clients/nginx.new
	cd build/clients/nginx.new && { apt-get download -q nginx || { apt-get update -q; apt-get download -q nginx; }; } && dpkg-deb -x nginx_*.deb .
	mv build/clients/nginx.new $@

servers: build/servers

build/servers: | deps
	@mkdir -p build/servers.new
	cd build/servers.new && { apt-get download -q $(SERVER_DEBS) || { apt-get update -q; apt-get download -q $(SERVER_DEBS); }; } && \
	for deb in *.deb; do dpkg-deb -x $$deb .; done && rm -- *.deb
	mv build/servers.new $@

# npm writes this file last.
build/clients/node_modules/.package-lock.json: $(CLIENTS)/package.json $(CLIENTS)/package-lock.json | client-deps
	@mkdir -p build/clients
	cp $^ build/clients
	cd build/clients && npm ci --ignore-scripts --omit=optional --no-audit --no-fund
	@touch $@

slurm: build/slurm/usr/sbin/munged ## a Slurm cluster, for the tests of builds that run on one

slurm-deps: deps
	$(call install,$(SLURM_DEBS))

build/slurm/usr/sbin/munged: | slurm-deps
	@rm -rf build/slurm.new && mkdir -p build/slurm.new
	cd build/slurm.new && { apt-get download -q $(SLURM_UNPACKED) || { apt-get update -q; apt-get download -q $(SLURM_UNPACKED); }; } && for d in *.deb; do dpkg-deb -x $$d .; done
	rm -rf build/slurm && mv build/slurm.new build/slurm

tools: bin/runc

bin/runc: tools/go.mod tools/go.sum
	@mkdir -p bin
	cd tools && CGO_ENABLED=1 $(GO) build -buildvcs=false -trimpath -tags seccomp -o ../bin/runc github.com/opencontainers/runc

build: deps bin/runc ## bin/clawfs and the runtime beside it
	@mkdir -p bin
	$(GOBUILD) -o bin/clawfs ./cmd/clawfs

PREFIX ?= /usr/local
install: build ## program, runtime, man pages, completion, unit
	install -D -m 0755 bin/clawfs $(DESTDIR)$(PREFIX)/libexec/clawfs/clawfs
	install -D -m 0755 bin/runc $(DESTDIR)$(PREFIX)/libexec/clawfs/runc
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	ln -sf ../libexec/clawfs/clawfs $(DESTDIR)$(PREFIX)/bin/clawfs
	bin/clawfs man $(DESTDIR)$(PREFIX)/share/man/man1
	bin/clawfs completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/clawfs
	install -D -m 0644 deploy/clawfs.service $(DESTDIR)$(PREFIX)/lib/systemd/system/clawfs.service
	install -D -m 0644 deploy/clawfs-pull.service $(DESTDIR)$(PREFIX)/lib/systemd/system/clawfs-pull.service
	install -D -m 0644 deploy/clawfs-head.service $(DESTDIR)$(PREFIX)/lib/systemd/system/clawfs-head.service
	install -D -m 0644 deploy/clawfs-head.timer $(DESTDIR)$(PREFIX)/lib/systemd/system/clawfs-head.timer
	install -D -m 0644 deploy/clawfs-metrics.service $(DESTDIR)$(PREFIX)/lib/systemd/system/clawfs-metrics.service
	install -D -m 0644 deploy/clawfs-alerts.yml $(DESTDIR)$(PREFIX)/share/clawfs/clawfs-alerts.yml

demo: build ## the main job on real input
	examples/langid/demo.sh

demo-torch: build
	examples/torch/demo.sh

demo-xgboost: build client-deps
	examples/xgboost/demo.sh

demo-quantize: build clients
	examples/quantize/demo.sh

demo-quorum: build servers ## three operators, a log with two witnesses, a registry, and a node that only serves
	examples/quorum/demo.sh

demo-all: demo demo-quorum demo-quantize demo-xgboost demo-torch

test: build clients servers slurm ## the whole suite
	$(GO) test -count=1 -timeout 25m $(UNIT)
	@$(MAKE) test-arm64

# The SHA-2 instructions of ARMv8 take over in hashpipe; the same tests run there.
test-arm64: deps
	@mkdir -p bin
	cd hashpipe && CGO_ENABLED=0 GOOS=linux GOARCH=arm64 $(GO) test -c -o ../bin/hashpipe.arm64.test .
	cd hashpipe && qemu-aarch64-static -cpu max ../bin/hashpipe.arm64.test -test.count=1

# Kernels with fs-verity under software emulation; the first run downloads them.
test-verity: deps
	$(call install,$(VERITY_DEBS))
	integration/verity/run.sh

# By default each program under the detector sleeps for a second before it exits;
# the tests start thousands.
race: export GORACE := atexit_sleep_ms=10
race: build clients servers slurm
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 60m $(UNIT)

# What the suite has a short form of: 200 kills, 40 power losses, each call of each
# operation that fails, each damage of each file. About an hour.
FAULTFLAGS ?= -rounds 200 -power 20 -full -within 5s
faults: build ## the long form of the tests of faults
	$(GO) test -count=1 -timeout 4h -v -run '^TestFault' ./integration $(FAULTFLAGS)

lint: deps
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "gofmt would change:"; echo "$$out"; exit 1; }
	$(GO) vet ./... && $(GO) vet -tags verity ./fs ./hashpipe && cd tools && $(GO) vet ./mutate
	cd tools && $(GO) build -buildvcs=false -o ../bin/staticcheck honnef.co/go/tools/cmd/staticcheck
	bin/staticcheck -tags verity ./...
	shellcheck $$(git ls-files '*.sh' '*/clawfs-signer-*' .ci/run)
	$(GO) mod tidy -diff
	$(GO) mod verify

# Everything at once for SOAK, with the race detector; curves.csv and summary.txt
# of the run are left in build/soak. stress-ng works in the source of the mounts.
SOAK ?= 5m
SOAK_DEBS := stress-ng
soak: deps
	$(call install,$(SOAK_DEBS))
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 0 -v -run '^TestSoak$$' ./integration/soak -soak.time $(SOAK) -soak.stress-ng -soak.out $(CURDIR)/build/soak

FUZZTIME ?= 20s
fuzz: deps ## every fuzz target for FUZZTIME
	@targets=$$(git grep -oE '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' | sed -E 's#^(.*)/[^/]*:func (Fuzz.*)#./\1 \2#'); \
	[ -n "$$targets" ] || { echo "no fuzz target found"; exit 1; }; \
	while read -r pkg target; do echo "== $$pkg $$target"; \
	  $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s $$pkg; done <<< "$$targets"

# How many in each of five areas, or all; SEED chooses which. MUTATEFLAGS='-area fs
# -only decide.go' plants all faults of one file.
MUTATE ?= 100
SEED   ?= 1
mutate: build clients ## faults planted in the code that decides, and which of them the tests notice
	cd tools && $(GO) test -count=1 ./mutate && $(GO) build -buildvcs=false -o ../bin/mutate ./mutate
	nice -n 19 bin/mutate -seed $(SEED) -n $(MUTATE:all=0) $(MUTATEFLAGS)

bench: DEBS += $(BENCH_DEBS)
bench: build ## ratios against references of the same run; BENCHFLAGS=-short takes minutes
	$(GO) test -run '^$$' -bench . -benchtime 2s ./hashpipe/
	$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 1h ./cmd/clawfs/internal/translog/logserver/
	$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 1h ./rebuild/sandbox/ $(filter -short,$(BENCHFLAGS))
	$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 1h ./fs/ $(BENCHFLAGS)

repro: deps ## two builds in two directories give the same bytes
	@d=$$(mktemp -d); trap 'rm -rf "$$d"' EXIT; \
	git clone -q . $$d/one; git clone -q . $$d/two-with-a-longer-name; \
	for c in one two-with-a-longer-name; do (cd $$d/$$c && $(GOBUILD) -o $$d/$$c.bin ./cmd/clawfs); done; \
	sha256sum $$d/*.bin; cmp $$d/one.bin $$d/two-with-a-longer-name.bin && echo "repro: same bytes"

ci: lint test race repro

clean:
	rm -rf bin build
