from django.db import migrations

from usage.sql import sql


class Migration(migrations.Migration):
    dependencies = [
        ("tenants", "0006_webhooks"),
        ("usage", "0008_objects"),
    ]

    operations = [
        # The same column that asynchronous calls bring.
        migrations.RunSQL("ALTER TABLE usage_call ADD COLUMN IF NOT EXISTS detached boolean NOT NULL DEFAULT false"),
        migrations.RunSQL(sql("0009_webhooks")),
    ]
