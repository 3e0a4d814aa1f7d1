"""Answers that are given again, and cost something."""

from django.db import migrations

from usage.sql import sql


class Migration(migrations.Migration):
    dependencies = [
        ("usage", "0013_cache"),
    ]

    operations = [
        migrations.RunSQL(sql("0014_given")),
    ]
