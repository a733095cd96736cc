"""Which package indexes build steps reach: the public ones, and those of this machine's configuration."""

from builder.package_index import PackageIndex
from function_service.contract import Mount

PUBLIC = ("pypi.org:443", "files.pythonhosted.org:443", "registry.npmjs.org:443")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def test_without_configuration_it_is_the_public_ones(tmp_path):
    index = PackageIndex.find({}, tmp_path)
    assert index.egress == PUBLIC
    assert index.mounts == ()
    assert index.env == {
        "SSL_CERT_FILE": CERTIFICATES,
        "PIP_CERT": CERTIFICATES,
        "REQUESTS_CA_BUNDLE": CERTIFICATES,
        "NODE_EXTRA_CA_CERTS": CERTIFICATES,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def test_the_environment_names_indexes_and_folders(tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    index = PackageIndex.find(
        {
            "PIP_INDEX_URL": "https://user:word@pip.example.org/simple",
            "PIP_EXTRA_INDEX_URL": "http://one:8080/simple https://two/simple",
            "NPM_CONFIG_REGISTRY": "https://npm.example.org:4873/",
            "PIP_FIND_LINKS": f"{wheels} /nonexistent https://links.example.org/x",
            "UNRELATED": "1",
        },
        tmp_path,
    )
    assert index.egress == (
        *PUBLIC,
        "links.example.org:443",
        "pip.example.org:443",
        "one:8080",
        "two:443",
        "npm.example.org:4873",
    )
    assert index.mounts == (Mount(str(wheels), "/tools/find-links-0"),)
    assert index.env["PIP_FIND_LINKS"] == "/tools/find-links-0 https://links.example.org/x"
    assert index.env["PIP_INDEX_URL"] == "https://user:word@pip.example.org/simple"
    assert "UNRELATED" not in index.env


def test_files_are_read_and_the_environment_wins(tmp_path):
    home = tmp_path / "home"
    (home / ".config/pip").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/pip.conf").write_text(
        "[global]\nindex-url = https://all/simple\nextra-index-url =\n  https://a/s\n  https://b/s\n"
    )
    (home / ".config/pip/pip.conf").write_text("[install]\nindex-url = https://mine/simple\n")
    (home / ".npmrc").write_text("registry = https://npm/\n//npm/:_authToken=word\n")
    index = PackageIndex.find({"HOME": str(home)}, tmp_path)
    assert index.env["PIP_INDEX_URL"] == "https://mine/simple"
    assert index.env["PIP_EXTRA_INDEX_URL"] == "https://a/s https://b/s"
    assert index.env["NPM_CONFIG_REGISTRY"] == "https://npm/"
    assert index.egress == (*PUBLIC, "mine:443", "a:443", "b:443", "npm:443")
    assert "HOME" not in index.env
    index = PackageIndex.find({"HOME": str(home), "PIP_INDEX_URL": "https://env/simple"}, tmp_path)
    assert index.env["PIP_INDEX_URL"] == "https://env/simple"


def test_a_file_that_is_not_understood_is_left_out(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/pip.conf").write_text("no section = x\n")
    assert PackageIndex.find({"PIP_INDEX_URL": "nonsense"}, tmp_path).egress == PUBLIC
