"""Who accepted which version of a dataset's data-use agreement; it is never forgotten."""

from datetime import UTC, datetime

from sqlalchemy import select

from aggregator.access.principals import Principal
from aggregator.access.tables import AcceptanceRow
from aggregator.access.tokens import stamp
from aggregator.catalog import Dataset
from aggregator.database import Database
from aggregator.schema import DatasetRow


class AgreementChangedError(ValueError):
    """What is accepted is not the present version."""


class Agreements:
    """The acceptances, by principal: a new token of the same name need not accept again."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def accepted(self, principal: Principal, dataset: Dataset) -> bool:
        """Whether the version that ``dataset`` has was accepted."""
        query = (
            select(AcceptanceRow.accepted_at)
            .join(DatasetRow, DatasetRow.id == AcceptanceRow.dataset_id)
            .where(
                AcceptanceRow.principal == principal.name,
                AcceptanceRow.agreement_version == dataset.agreement_version,
                DatasetRow.namespace == dataset.namespace,
                DatasetRow.name == dataset.name,
            )
        )
        with self._database.session() as session:
            return session.scalar(query) is not None

    def accept(self, principal: Principal, dataset: Dataset, version: int) -> None:
        """Records an acceptance; a second time changes nothing. May raise
        ``AgreementChangedError``.
        """
        with self._database.session(write=True) as session:
            row = session.scalars(
                select(DatasetRow)
                .where(DatasetRow.namespace == dataset.namespace, DatasetRow.name == dataset.name)
                .with_for_update()
            ).one()
            if row.agreement_version != version:
                raise AgreementChangedError(f"the agreement has version {row.agreement_version}")
            key = (principal.name, row.id, version)
            if session.get(AcceptanceRow, key) is None:
                session.add(
                    AcceptanceRow(
                        principal=principal.name,
                        dataset_id=row.id,
                        agreement_version=version,
                        token_id=principal.token_id,
                        accepted_at=stamp(datetime.now(UTC)),
                    )
                )
