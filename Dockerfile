# The server, the worker of its pipelines, DuckDB's library, its httpfs extension. `make image` puts them into target/image and builds this; nothing
# is fetched here or at run time.
FROM debian:bookworm-slim

RUN groupadd --gid 10001 tarn \
 && useradd --uid 10001 --gid tarn --no-create-home --home-dir /var/lib/tarn --shell /usr/sbin/nologin tarn \
 && install -d -o tarn -g tarn /var/lib/tarn /var/lib/tarn/duckdb /var/lib/tarn/objects

COPY target/image/ /opt/tarn/
ENV PATH=/opt/tarn:$PATH \
    TARN_LISTEN=0.0.0.0:8642 \
    TARN_STATE_DIR=/var/lib/tarn/duckdb \
    TARN_STORE=file:/var/lib/tarn/objects

USER 10001:10001
WORKDIR /var/lib/tarn
# The store too: without a mount it would go with the container, and it is what must not be lost.
VOLUME ["/var/lib/tarn/duckdb", "/var/lib/tarn/objects"]
EXPOSE 8642
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=6 CMD ["tarn", "health"]
ENTRYPOINT ["tarn"]
CMD ["serve"]
