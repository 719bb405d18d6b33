# What `make image` makes without Docker, for those who have it: one static program (musl) and nothing else. `operator`,
# `gateway` and `check` run in it; `dev` and `clickhouse` don't, for the embedded engine is a glibc library that a static program
# can't load. Run so far only on a stand-in for its first base image: docs/cluster-test.md.
FROM rust:1.95-alpine AS build
RUN apk add --no-cache build-base
WORKDIR /kubemeter
COPY . .
# Functions keep their names, for backtraces.
RUN cargo build --release --locked --config 'profile.release.strip="debuginfo"' && cp target/release/kubemeter /kubemeter.bin

FROM scratch
COPY --from=build /kubemeter.bin /kubemeter
USER 65532:65532
ENTRYPOINT ["/kubemeter"]
