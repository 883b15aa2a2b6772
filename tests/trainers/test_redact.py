import pytest

from tests.test_public_surface import EXPECTED
from trainers.redact import has_password, is_secret_name, redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no route to https://ann:pa55@host/x?token=abc", "no route to https://***@host/x?token=***"),
        ("postgresql+psycopg://ann:pa/55@host/a", "postgresql+psycopg://***@host/a"),
        ("at 'postgresql://ann:p@55@host/a': x@y", "at 'postgresql://***@host/a': x@y"),
        ("https://token@host/", "https://***@host/"),
        ("HTTPS://token@host/", "HTTPS://***@host/"),
        ("postgresql://ann:it's[a]pass\"word@host/a", "postgresql://***@host/a"),
        ("https://h/x?authkey=a&api.key=b&tokenid=c&pw=d", "https://h/x?authkey=***&api.key=***&tokenid=***&pw=***"),
        ("https://a:b@c/ then https://d:e@f/", "https://***@c/ then https://***@f/"),
        ("s3://bucket/x?api_key=a&region=b&X-Amz-Signature=c", "s3://bucket/x?api_key=***&region=b&X-Amz-Signature=***"),
        ("AccountName=a;AccountKey=b2==;Suffix=c", "AccountName=a;AccountKey=***;Suffix=c"),
        ("https://a/;SharedAccessSignature=sv=2&sig=c", "https://a/;SharedAccessSignature=***&sig=***"),
        ("https://h/x#token=a", "https://h/x#token=***"),
        ("https://h/x;password=a", "https://h/x;password=***"),
        ("https://h/x?code=a&state=b", "https://h/x?code=***&state=b"),
        ("https://h/x?auth=a", "https://h/x?auth=***"),
        ("https://h/x?jwt=a", "https://h/x?jwt=***"),
        ("https://h/x?credential=a", "https://h/x?credential=***"),
        ("https://h/?next=https://i/?key=a", "https://h/?next=https://i/?key=***"),
        ("host=h password=x dbname=d", "host=h password=*** dbname=d"),
        ("password = 'x y' host=h", "password = *** host=h"),
        ("Server=s;User Id=u;Pwd=x;Database=d", "Server=s;User Id=u;Pwd=***;Database=d"),
        ("at //ann:pa55@host/a", "at //***@host/a"),
        ("postgresql://ann:pa//55@host/a", "postgresql://***@host/a"),
        ("s3://bucket/a@b/c?versionId=3", "s3://bucket/a@b/c?versionId=3"),
        ("http://host:5000/x@y", "http://host:5000/x@y"),
        ("http://[::1]:5000/x@y", "http://[::1]:5000/x@y"),
        ("hf-hub:org/model@rev", "hf-hub:org/model@rev"),
        ("R&B", "R&B"),
        ("sort(key=f): exit code=1, token_count=3", "sort(key=f): exit code=1, token_count=3"),
        ("/data/token=abc/part", "/data/token=abc/part"),
        ("s3://bucket/folder and http://host:5000/x", "s3://bucket/folder and http://host:5000/x"),
        ("file:///home/ann@work/runs", "file:///home/ann@work/runs"),
    ],
)  # fmt: skip
def test_secrets_of_urls_are_hidden(text, shown):
    assert redact(text) == shown
    assert has_password(text) == (text != shown)
    assert redact(shown) == shown


def test_values_from_the_environment_are_hidden(monkeypatch):
    monkeypatch.setenv("PASSWORD_A", "hunter2")
    monkeypatch.delenv("PASSWORD_B", raising=False)
    url = "postgresql://ann:${PASSWORD_A}@host/$PASSWORD_B"
    assert redact("authentication failed (hunter2)", url) == "authentication failed (***)"
    assert redact("authentication failed (hunter2)") == "authentication failed (hunter2)"


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("HF_TOKEN", True), ("TOKEN_FILE", True), ("GITHUBTOKEN", True), ("api_key", True),
        ("AWS_SECRET_ACCESS_KEY", True), ("PGPASSWORD", True), ("MYSQL_PWD", True),
        ("AZURE_STORAGE_KEY", True), ("AZURE_STORAGE_ACCOUNT_KEY", True),
        ("AZURE_STORAGE_CONNECTION_STRING", True), ("AZURE_STORAGE_ACCOUNT", False),
        ("GITHUB_PAT", True), ("KAGGLE_KEY", True), ("OPENAI_KEY", True), ("MY_AUTH", True),
        ("SLACK_WEBHOOK_URL", True), ("DATABASE_URL", True), ("SENTRY_DSN", True),
        ("AWS_ACCESS_KEY_ID", True), ("MONKEY", False), ("KEYBOARD", False),
        ("TOKENIZERS_PARALLELISM", False), ("OMP_NUM_THREADS", False), ("token_count", False),
        ("lipsum_ft_text_count", False), ("MLFLOW_TRACKING_URI", False), ("AUTHOR", False),
        ("search.study_storage", False), ("store.credentials", True), ("PWD", False),
        ("OLDPWD", False), ("trial.method.key", False),
        ("trial.model.tokenizer", False), ("method.text_tokens", False), ("COMPASS", False),
    ],
)  # fmt: skip
def test_names_of_secrets_are_recognised(name, is_secret):
    assert is_secret_name(name) is is_secret


def test_no_key_of_a_configuration_is_a_secret():
    assert [key for key in EXPECTED["configuration"] if is_secret_name(key)] == []
