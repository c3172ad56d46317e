"""`transformers serve` for one model. What its chat template refuses gets status 400 and a reason,
where transformers alone says "internal server error"."""

from __future__ import annotations

import sys
from typing import Any


def main(name: str, host: str, port: str) -> None:
    """Serve the model in the folder `name` until a signal ends it."""
    from fastapi.responses import JSONResponse
    from jinja2.exceptions import TemplateError
    from transformers.cli.serve import Serve
    from transformers.cli.serving import server

    build = server.build_server

    def build_with_reasons(*args: Any, **kwargs: Any) -> Any:
        app = build(*args, **kwargs)

        @app.exception_handler(TemplateError)
        async def refused(request: Any, error: TemplateError) -> JSONResponse:
            problem = {"message": str(error), "type": "invalid_request_error"}
            return JSONResponse({"error": problem}, status_code=400)

        return app

    server.build_server = build_with_reasons
    Serve(force_model=name, host=host, port=int(port))


if __name__ == "__main__":
    main(*sys.argv[1:])
