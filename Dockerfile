# The official Postgres image with obanrs in it, preloaded:
#
#   docker build --build-arg PG_MAJOR=17 --tag obanrs:17 .
#
# The steps are in tools/image, which `make test-image` runs in a clean Debian root.
ARG PG_MAJOR=17
ARG DEBIAN=bookworm
ARG RUST=1.95

FROM rust:${RUST}-slim-${DEBIAN} AS rust
# pgrx writes its bindings with it, and the image comes without.
RUN rustup component add rustfmt

FROM postgres:${PG_MAJOR}-${DEBIAN} AS build
COPY --from=rust /usr/local/cargo /usr/local/cargo
COPY --from=rust /usr/local/rustup /usr/local/rustup
ENV CARGO_HOME=/usr/local/cargo RUSTUP_HOME=/usr/local/rustup PATH=/usr/local/cargo/bin:$PATH
WORKDIR /obanrs
COPY tools/image tools/
RUN tools/image prepare
COPY . .
RUN tools/image build /package

FROM postgres:${PG_MAJOR}-${DEBIAN}
RUN --mount=type=bind,from=build,source=/obanrs/tools,target=/tools \
    --mount=type=bind,from=build,source=/package,target=/package \
    /tools/image install /package
