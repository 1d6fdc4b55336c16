# Berth's programs as static binaries in an otherwise empty image: no shell, no libraries, nobody is root.
#
#   docker build -t registry.example/berth:0.1.0 .
#
# For another architecture: --build-arg TARGET=aarch64-unknown-linux-musl on a machine (or a builder) of that architecture.

FROM rust:1.95-bookworm AS build
ARG TARGET=x86_64-unknown-linux-musl
# C for ring and mimalloc, against musl; protoc for etcd's client.
RUN apt-get update \
 && apt-get install -y --no-install-recommends musl-tools protobuf-compiler libprotobuf-dev \
 && rm -rf /var/lib/apt/lists/* \
 && rustup target add "$TARGET"
WORKDIR /berth
COPY . .
# A program that is not static would not start in an empty image: better to fail here.
RUN cargo build --release --locked --target "$TARGET" --bin berth-controller --bin berth-agent --bin berth \
 && mkdir -p /out/var/lib/berth /out/var/lib/berth-agent \
 && cp "target/$TARGET/release/berth-controller" "target/$TARGET/release/berth-agent" "target/$TARGET/release/berth" /out/ \
 && for program in berth-controller berth-agent berth; do \
      ldd "/out/$program" 2>&1 | grep -Eq "statically linked|not a dynamic executable" || exit 1; \
    done

FROM scratch
COPY --from=build --chown=65532:65532 /out/ /
USER 65532:65532
EXPOSE 7600
ENTRYPOINT ["/berth-controller"]
