# The interface for other programs (`deep_fashion serve`) with a tagger that `deep_fashion export` wrote, without PyTorch:
#   docker build -t deep_fashion . && docker compose up
# compose.yaml has the limits; the model is mounted at /model.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /source
RUN python -m venv --without-pip /opt/deep_fashion
# Before the sources, so that a change of these does not install everything again.
COPY settings.ini ./
COPY container/requirements.py container/
RUN python container/requirements.py > requirements.txt \
 && python -m pip --python /opt/deep_fashion/bin/python install --no-cache-dir -r requirements.txt
COPY pyproject.toml setup.py README.md LICENSE ./
COPY deep_fashion deep_fashion
RUN python -m pip --python /opt/deep_fashion/bin/python install --no-cache-dir --no-deps .

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/deep_fashion /opt/deep_fashion
ENV PATH=/opt/deep_fashion/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY container/healthy.py /opt/
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s CMD ["python", "/opt/healthy.py", "http://127.0.0.1:8000"]
# SIGTERM ends the server after the requests it has.
STOPSIGNAL SIGTERM
ENTRYPOINT ["deep_fashion"]
# Others than the container itself can reach it, so the password is required: DEEP_FASHION_PASSWORD.
CMD ["serve", "--model", "/model", "--host", "0.0.0.0", "--port", "8000"]
