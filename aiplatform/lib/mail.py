"""Where mail goes while no server is named: into the log, by its subject only."""

from collections.abc import Sequence

from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend

from aiplatform.lib.logs import log


class LogBackend(BaseEmailBackend):
    """Writes one event a message, and sends nothing."""

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        for message in email_messages:
            log.info(
                "mail.not_sent", reason="EMAIL_URL is not set", subject=message.subject, to=len(message.recipients())
            )
        return len(email_messages)
