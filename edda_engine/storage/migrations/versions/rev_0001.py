"""Instances, history, retries, outbox, workers, definitions."""

import sqlalchemy as sa
from alembic import op

from edda_engine.storage.types import JsonText, UtcTimestamp

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the first tables."""
    op.create_table('edda_definitions',
    sa.Column('workflow_name', sa.String(length=255), nullable=False),
    sa.Column('source_hash', sa.String(length=64), nullable=False),
    sa.Column('source', sa.Text(), nullable=False),
    sa.Column('created_at', UtcTimestamp(), nullable=False),
    sa.PrimaryKeyConstraint('workflow_name', 'source_hash', name=op.f('pk_edda_definitions'))
    )
    op.create_table('edda_history',
    sa.Column('instance_id', sa.String(length=255), nullable=False),
    sa.Column('activity_id', sa.String(length=255), nullable=False),
    sa.Column('seq', sa.Integer(), nullable=False),
    sa.Column('branch', sa.String(length=255), nullable=False),
    sa.Column('position', sa.Integer(), nullable=False),
    sa.Column('event_type', sa.String(length=64), nullable=False),
    sa.Column('event_data', JsonText(), nullable=False),
    sa.Column('format', sa.SmallInteger(), nullable=False),
    sa.Column('created_at', UtcTimestamp(), nullable=False),
    sa.PrimaryKeyConstraint('instance_id', 'activity_id', name=op.f('pk_edda_history'))
    )
    op.create_table('edda_instances',
    sa.Column('instance_id', sa.String(length=255), nullable=False),
    sa.Column('workflow_name', sa.String(length=255), nullable=False),
    sa.Column('service', sa.String(length=100), nullable=False),
    sa.Column('status', sa.String(length=32), nullable=False),
    sa.Column('input', JsonText(), nullable=False),
    sa.Column('output', JsonText(), nullable=True),
    sa.Column('error', JsonText(), nullable=True),
    sa.Column('source_hash', sa.String(length=64), nullable=False),
    sa.Column('priority', sa.SmallInteger(), server_default='0', nullable=False),
    sa.Column('wake_at', UtcTimestamp(), nullable=True),
    sa.Column('locked_by', sa.String(length=255), nullable=True),
    sa.Column('lock_expires_at', UtcTimestamp(), nullable=True),
    sa.Column('lock_epoch', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('lock_timeout_seconds', sa.Float(), nullable=False),
    sa.Column('parent_instance_id', sa.String(length=255), nullable=True),
    sa.Column('continued_from', sa.String(length=255), nullable=True),
    sa.Column('cancel_requested_at', UtcTimestamp(), nullable=True),
    sa.Column('cancel_reason', sa.Text(), nullable=True),
    sa.Column('created_at', UtcTimestamp(), nullable=False),
    sa.Column('started_at', UtcTimestamp(), nullable=True),
    sa.Column('updated_at', UtcTimestamp(), nullable=False),
    sa.Column('completed_at', UtcTimestamp(), nullable=True),
    sa.CheckConstraint("status IN ('pending', 'running', 'waiting_for_event', 'waiting_for_timer', 'waiting_for_message', 'compensating', 'completed', 'failed', 'cancelled', 'recurred')", name=op.f('ck_edda_instances_status')),
    sa.CheckConstraint('lock_epoch >= 0', name=op.f('ck_edda_instances_lock_epoch')),
    sa.PrimaryKeyConstraint('instance_id', name=op.f('pk_edda_instances'))
    )
    op.create_index('ix_edda_instances_created_at', 'edda_instances', ['created_at', 'instance_id'], unique=False)
    op.create_index('ix_edda_instances_due', 'edda_instances', ['service', 'wake_at'], unique=False, postgresql_where=sa.text('wake_at IS NOT NULL'), sqlite_where=sa.text('wake_at IS NOT NULL'))
    op.create_index('ix_edda_instances_locked_by', 'edda_instances', ['locked_by'], unique=False, postgresql_where=sa.text('locked_by IS NOT NULL'), sqlite_where=sa.text('locked_by IS NOT NULL'))
    op.create_table('edda_outbox',
    sa.Column('event_id', sa.String(length=64), nullable=False),
    sa.Column('instance_id', sa.String(length=255), nullable=True),
    sa.Column('activity_id', sa.String(length=255), nullable=True),
    sa.Column('type', sa.String(length=255), nullable=False),
    sa.Column('source', sa.Text(), nullable=False),
    sa.Column('subject', sa.Text(), nullable=True),
    sa.Column('content_type', sa.String(length=255), nullable=False),
    sa.Column('data', JsonText(), nullable=True),
    sa.Column('data_binary', sa.LargeBinary(), nullable=True),
    sa.Column('ordering_key', sa.String(length=255), nullable=True),
    sa.Column('status', sa.String(length=32), nullable=False),
    sa.Column('attempts', sa.Integer(), server_default='0', nullable=False),
    sa.Column('next_attempt_at', UtcTimestamp(), nullable=True),
    sa.Column('last_error', sa.Text(), nullable=True),
    sa.Column('locked_by', sa.String(length=255), nullable=True),
    sa.Column('lock_expires_at', UtcTimestamp(), nullable=True),
    sa.Column('created_at', UtcTimestamp(), nullable=False),
    sa.Column('published_at', UtcTimestamp(), nullable=True),
    sa.CheckConstraint("status IN ('pending', 'publishing', 'published', 'dead')", name=op.f('ck_edda_outbox_status')),
    sa.PrimaryKeyConstraint('event_id', name=op.f('pk_edda_outbox'))
    )
    op.create_index('ix_edda_outbox_due', 'edda_outbox', ['next_attempt_at'], unique=False, postgresql_where=sa.text('next_attempt_at IS NOT NULL'), sqlite_where=sa.text('next_attempt_at IS NOT NULL'))
    op.create_table('edda_retries',
    sa.Column('instance_id', sa.String(length=255), nullable=False),
    sa.Column('activity_id', sa.String(length=255), nullable=False),
    sa.Column('attempts', sa.Integer(), nullable=False),
    sa.Column('first_attempt_at', UtcTimestamp(), nullable=False),
    sa.Column('next_attempt_at', UtcTimestamp(), nullable=False),
    sa.Column('errors', JsonText(), nullable=False),
    sa.CheckConstraint('attempts >= 1', name=op.f('ck_edda_retries_attempts')),
    sa.PrimaryKeyConstraint('instance_id', 'activity_id', name=op.f('pk_edda_retries'))
    )
    op.create_table('edda_workers',
    sa.Column('worker_id', sa.String(length=255), nullable=False),
    sa.Column('service', sa.String(length=100), nullable=False),
    sa.Column('host', sa.String(length=255), nullable=False),
    sa.Column('pid', sa.Integer(), nullable=False),
    sa.Column('process_started', sa.String(length=64), nullable=False),
    sa.Column('advisory_key', sa.BigInteger(), nullable=True),
    sa.Column('workflows', JsonText(), nullable=False),
    sa.Column('version', sa.String(length=64), nullable=False),
    sa.Column('started_at', UtcTimestamp(), nullable=False),
    sa.Column('heartbeat_at', UtcTimestamp(), nullable=False),
    sa.PrimaryKeyConstraint('worker_id', name=op.f('pk_edda_workers'))
    )
