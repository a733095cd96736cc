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
    assert index.env["npm_config_//npm/:_authToken"] == "word"
    index = PackageIndex.find({"HOME": str(home), "PIP_INDEX_URL": "https://env/simple"}, tmp_path)
    assert index.env["PIP_INDEX_URL"] == "https://env/simple"


def test_npm_brings_its_trust_its_scopes_and_its_credentials(tmp_path):
    (tmp_path / "ca.pem").write_text("root of all trust")
    (tmp_path / ".npmrc").write_text(
        f"""; a comment = x
        registry="https://npm.example.org/"
        @mine:registry=https://mine.example.org:444/npm
        //npm.example.org/:_authToken=${{TOKEN}}
        //mine.example.org:444/npm/:_password = c2VjcmV0
        //npm.example.org/:cafile=/x
        cafile={tmp_path}/ca.pem
        strict-ssl=false
        init-author-name = somebody
        """
    )
    index = PackageIndex.find({"HOME": str(tmp_path), "TOKEN": "t0ken"}, tmp_path)
    npm = {name: value for name, value in index.env.items() if name.lower().startswith("npm_config")}
    assert npm == {
        "NPM_CONFIG_REGISTRY": "https://npm.example.org/",
        "NPM_CONFIG_STRICT_SSL": "false",
        "npm_config_@mine:registry": "https://mine.example.org:444/npm",
        "npm_config_//npm.example.org/:_authToken": "t0ken",
        "npm_config_//mine.example.org:444/npm/:_password": "c2VjcmV0",
    }
    assert index.egress == (*PUBLIC, "npm.example.org:443", "mine.example.org:444")
    assert index.certificates == {"NPM_CONFIG_CAFILE": b"root of all trust"}


def test_certificates_are_stored_where_steps_see_them(tmp_path):
    (tmp_path / "ca.pem").write_text("trust")
    index = PackageIndex.find(
        {"PIP_CERT": f"{tmp_path}/ca.pem", "npm_config_cafile": "/nonexistent"}, tmp_path
    )
    assert index.env["PIP_CERT"] == CERTIFICATES
    stored = index.store(tmp_path / "stored")
    assert stored.env["PIP_CERT"] == "/tools/package-index/PIP_CERT.pem"
    assert stored.mounts == (Mount(str(tmp_path / "stored"), "/tools/package-index"),)
    assert (tmp_path / "stored/PIP_CERT.pem").read_text() == "trust"
    assert "NPM_CONFIG_CAFILE" not in stored.env
    without = PackageIndex.find({}, tmp_path)
    assert without.store(tmp_path / "none") is without
    assert not (tmp_path / "none").exists()


def test_credentials_are_neither_shown_nor_part_of_what_addresses_a_layer(tmp_path, caplog):
    caplog.set_level("DEBUG")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/pip.conf").write_text("index-url = https://me:s3cret@host/\n")
    identities = []
    for token in ("s3cret", "an0ther"):
        (tmp_path / ".npmrc").write_text(f"//npm/:_authToken={token}\ncafile=/nonexistent\n")
        index = PackageIndex.find(
            {"HOME": str(tmp_path), "PIP_INDEX_URL": "https://me:s3cret@pip/"}, tmp_path
        )
        assert token in index.env.values()
        assert "s3cret" not in repr(index)
        identities.append(index.identity)
    assert identities[0] == identities[1]
    assert "s3cret" not in caplog.text


def test_a_file_that_is_not_understood_is_left_out(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/pip.conf").write_text("no section = x\n")
    assert PackageIndex.find({"PIP_INDEX_URL": "nonsense"}, tmp_path).egress == PUBLIC
