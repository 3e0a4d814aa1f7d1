"""What a call costs stays flat, however many tenants there are."""

import django.db.models.deletion
from django.db import migrations, models

from usage.sql import sql


class Migration(migrations.Migration):
    dependencies = [
        ("usage", "0010_background"),
    ]

    operations = [
        # The unique one begins with the cap as well, and finds one of many buckets.
        migrations.AlterField(
            model_name="capbucket",
            name="cap",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="buckets",
                to="usage.spendingcap",
            ),
        ),
        migrations.RunSQL(sql("0011_flat")),
    ]
