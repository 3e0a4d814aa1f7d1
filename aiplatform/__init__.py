"""The Django project of aiplatform; Celery finds its application here as `celery -A aiplatform`."""

from aiplatform.celery import app as celery_app

__all__ = ["celery_app"]
