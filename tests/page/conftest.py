from tests.clients.conftest import fal_server

__all__ = ["fal_server"]
