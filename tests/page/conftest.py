from tests.clients.conftest import fal_server, webhook_port

__all__ = ["fal_server", "webhook_port"]
