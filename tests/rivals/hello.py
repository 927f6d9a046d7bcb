"""FastAPI's hello world: what the framework costs before anyone predicts anything."""

from fastapi import FastAPI

app = FastAPI()


@app.get("/")
async def hello() -> dict[str, str]:
    """Say hello."""
    return {"hello": "world"}
