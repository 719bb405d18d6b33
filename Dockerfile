# One static binary and nothing else. `operator` and `gateway` run in it; `dev` and `clickhouse` don't, for the embedded
# engine is a glibc library that a static binary can't load.
FROM rust:1.95-alpine AS build
RUN apk add --no-cache build-base
WORKDIR /kubemeter
COPY . .
# Symbols stay, for backtraces.
RUN cargo build --release --locked --config 'profile.release.strip="debuginfo"' && cp target/release/kubemeter /kubemeter.bin

FROM scratch
COPY --from=build /kubemeter.bin /kubemeter
USER 65532:65532
ENTRYPOINT ["/kubemeter"]
