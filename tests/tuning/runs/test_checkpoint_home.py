from tuning.runs.checkpoint_home import checkpoint_home


def test_a_run_has_its_own_folder_in_the_storage(tmp_path):
    assert checkpoint_home(tmp_path / "moved", None, "mine", "ab12") == str(tmp_path / "moved")
    assert checkpoint_home(tmp_path / "moved", "s3://b/x/", "mine", "ab12") == "s3://b/x/mine-ab12"
    queried = checkpoint_home(tmp_path, "s3://b/x?region=eu", "mine", "ab12")
    assert queried == "s3://b/x/mine-ab12?region=eu"
