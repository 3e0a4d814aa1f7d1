from django.db import migrations

from usage.sql import sql


class Migration(migrations.Migration):
    dependencies = [
        ("tenants", "0006_webhooks"),
        ("usage", "0008_objects"),
    ]

    operations = [
        migrations.RunSQL(sql("0009_webhooks")),
    ]
