from django.db import migrations, models

from usage.sql import sql


class Migration(migrations.Migration):
    dependencies = [
        ("usage", "0005_seals"),
    ]

    operations = [
        migrations.AddField(
            model_name="call",
            name="lane",
            field=models.TextField(
                choices=[("interactive", "Interactive"), ("batch", "Batch")],
                db_default="interactive",
                default="interactive",
            ),
        ),
        migrations.AddField(
            model_name="call",
            name="detached",
            field=models.BooleanField(db_default=False, default=False, help_text="nobody waits for its answer"),
        ),
        migrations.RunSQL(sql("0006_lanes")),
    ]
