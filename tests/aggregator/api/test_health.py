from pathlib import Path

from aggregator.api import create_app
from aggregator.store import BlobStore
from tests.aggregator.api.conftest import TestClient


def test_an_api_with_all_it_needs_is_ready(client: TestClient) -> None:
    assert client.get("/livez").json() == {"alive": True}
    answer = client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"ready": True, "checks": {"database": True, "store": True}}


def test_an_api_that_lost_its_files_lives_and_is_not_ready(home: Path, client: TestClient) -> None:
    (home / "blobs").rename(home / "elsewhere")
    (home / "blobs").write_text("no folder")
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"ready": False, "checks": {"database": True, "store": False}}
    assert client.get("/livez").status_code == 200


def test_an_api_that_lost_its_database_is_not_ready(home: Path) -> None:
    app = create_app(home)
    with TestClient(app) as client:
        with app.state.catalog.database.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE datasets RENAME TO lost")
        answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["checks"] == {"database": False, "store": True}


def test_a_bucket_is_reached_or_not(bucket: str) -> None:
    assert BlobStore(bucket).reached()
    assert not BlobStore("s3://not-there/releases").reached()
