# Serve a finished run (docs/serving.md). It lies at the top, where `docker build .` looks for it and for what it copies.
FROM python:3.11-slim

# Where torch comes from. The default has no CUDA; PyPI's has: --build-arg TORCH_INDEX=https://pypi.org/simple
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# implicit (collaborative filtering) needs OpenMP's library, which no wheel of it holds
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/dcdt
COPY pyproject.toml README.md LICENSE .ci/constraints.txt ./
COPY conf conf
COPY baselines baselines
COPY data/linear_algebra data/linear_algebra
COPY dcdt dcdt
RUN pip install --no-cache-dir --constraint constraints.txt --extra-index-url "$TORCH_INDEX" '.[local,serve]'

RUN useradd --create-home dcdt
USER dcdt
WORKDIR /home/dcdt
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz')"]
ENTRYPOINT ["dcdt"]
CMD ["serve", "run", "--host", "0.0.0.0"]
