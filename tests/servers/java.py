"""Servers that run in a JVM, from jars that Maven fetched once into the user's cache.

Each is one or two processes on free ports of 127.0.0.1, with its data in a temporary folder; it can be stopped, killed
and started again on the same ports."""
import hashlib
import json
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

from scalai_nb.core.lock import locked
from servers import cached, free_port, wait_for

POM = Path(__file__).with_name("pom.xml")
PROFILES = ("kafka", "hdfs", "cassandra")  # of the pom


def jars(profile: str) -> Path:
    "The folder of a server's jars."
    for program in ("mvn", "java"):
        assert shutil.which(program), f"{program} is not installed: apt-get install maven default-jre-headless"
    home = cached(f"jars-{profile}-{hashlib.sha256(POM.read_bytes()).hexdigest()[:12]}")
    with locked(f"{home}.lock"):
        if (home/"done").exists(): return home
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run(["mvn", "-q", "-B", "-f", str(POM), "-P", profile, "dependency:copy-dependencies",
                        f"-DoutputDirectory={home}"], check=True)
        (home/"done").touch()
    return home


class Jvm:
    "A server of one or more JVMs, each by its name in `processes`."
    profile = ""

    def __init__(self):
        self.jars, self.folder = jars(self.profile), Path(tempfile.mkdtemp(prefix=f"scalai-{self.profile}-"))
        self.processes: dict[str, subprocess.Popen] = {}
        try:
            self.prepare()
            self.start()
        except BaseException: self.__exit__(); raise

    def prepare(self): "Write the configuration and whatever is written once."
    def start(self): "Start all that is stopped, and return when it answers."

    def java(self, *args, classpath: str = "") -> list[str]:
        return ["java", *map(str, args[:-1]), "-cp", f"{classpath}{self.jars}/*", *map(str, args[-1:])]

    def call(self, command: list[str]): subprocess.run(command, check=True, capture_output=True, cwd=self.folder)

    def run(self, name: str, port: int, command: list[str]):
        "Start a process and wait until it listens; what it says is in `NAME.log`."
        with open(self.folder/f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        wait_for(port, self.processes[name])

    def stop(self, name: str | None = None, how=signal.SIGTERM):
        "Stop one process, or all."
        gone = [self.processes.pop(n) for n in ([name] if name else list(self.processes))]
        for p in gone: p.send_signal(how)
        for p in gone:
            try: p.wait(30)
            except subprocess.TimeoutExpired: p.kill(); p.wait()

    def kill(self, name: str | None = None): self.stop(name, signal.SIGKILL)

    def __enter__(self): return self
    def __exit__(self, *_):
        self.stop(how=signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


def certificate(name: str, authority: tuple | None = None) -> tuple:  # the certificate and its key
    "A certificate for 127.0.0.1 that an authority signed, or of an authority, which signs itself."
    import datetime as dt
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.timezone.utc)
    named = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = (x509.CertificateBuilder().subject_name(named).public_key(key.public_key())
            .issuer_name(authority[0].subject if authority else named).serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=9))
            .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False))
    return made.sign(authority[1] if authority else key, hashes.SHA256()), key


def pem(*made) -> bytes:  # of certificates and keys, in this order
    from cryptography.hazmat.primitives import serialization as s
    return b"".join(x.public_bytes(s.Encoding.PEM) if hasattr(x, "public_bytes") else
                    x.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()) for x in made)


class Kafka(Jvm):
    "Kafka 4 (KRaft): one node, broker and controller; `ann` logs in over TLS on another port."
    profile = "kafka"
    password = "s3cret/of@ann"  # with what a URI has to quote

    def __init__(self, **more):  # of server.properties; dots are written as underscores
        self.port, self.controller, self.tls, self.more = free_port(), free_port(), free_port(), more
        super().__init__()

    @property
    def address(self) -> str: return f"127.0.0.1:{self.port}"

    def uri(self, rest: str = "") -> str: return f"kafka://{self.address}/{rest}"

    def login_uri(self, rest: str, password: str | None = None, authority: str = "ca.pem") -> str:
        from urllib.parse import quote
        return (f"kafka://ann:{quote(password or self.password, safe='')}@127.0.0.1:{self.tls}/{rest}"
                f"?ssl.ca.location={self.folder/authority}")

    def prepare(self):
        authority, other = certificate("authority"), certificate("another authority")
        (self.folder/"ca.pem").write_bytes(pem(authority[0]))
        (self.folder/"other.pem").write_bytes(pem(other[0]))
        (self.folder/"broker.pem").write_bytes(pem(*certificate("broker", authority)[::-1]))
        listeners = f"PLAINTEXT://{self.address},SASL_SSL://127.0.0.1:{self.tls}"
        said = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{self.controller}",
            "listeners": f"{listeners},CONTROLLER://127.0.0.1:{self.controller}",
            "advertised.listeners": listeners,
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl_ssl.plain.sasl.jaas.config":
                f'org.apache.kafka.common.security.plain.PlainLoginModule required user_ann="{self.password}";',
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self.folder/"broker.pem",
            "log.dirs": self.folder/"data",
            "num.partitions": 2,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
        } | {k.replace("_", "."): v for k, v in self.more.items()}
        (self.folder/"server.properties").write_text("".join(f"{k}={v}\n" for k, v in said.items()))
        cluster = "A" + secrets.token_hex(11)[:21]  # an id that begins with a hyphen is taken for an option
        self.call([*self.java("kafka.tools.StorageTool"), "format", "--standalone", "-t", cluster, "-c",
                   "server.properties"])

    def start(self):
        if "broker" in self.processes: return
        self.run("broker", self.port, [*self.java("-Xmx512m", "kafka.Kafka"), "server.properties"])


class Hdfs(Jvm):
    "HDFS of Hadoop 3: `namenode` and `datanode`."
    profile = "hdfs"

    def __init__(self):
        self.port, self.web, self.data, self.data_web, self.ipc = (free_port() for _ in range(5))
        super().__init__()

    @property
    def address(self) -> str: return f"127.0.0.1:{self.port}"

    @property
    def root(self) -> str: return f"hdfs://{self.address}"

    @property
    def conf(self) -> Path: return self.folder/"conf"

    def configure(self, name: str, **values):
        "Write a file of the configuration; names have `_` for a dot and `__` for a hyphen."
        named = {k.replace("__", "-").replace("_", "."): v for k, v in values.items()}
        lines = (f"<property><name>{k}</name><value>{v}</value></property>" for k, v in named.items())
        (self.conf/f"{name}-site.xml").write_text(f"<configuration>{''.join(lines)}</configuration>")

    def prepare(self):
        self.conf.mkdir()
        self.configure("core", fs_defaultFS=self.root, hadoop_tmp_dir=self.folder/"tmp")
        self.configure(
            "hdfs",
            dfs_replication=1,
            dfs_namenode_http__address=f"127.0.0.1:{self.web}",
            dfs_datanode_address=f"127.0.0.1:{self.data}",
            dfs_datanode_http_address=f"127.0.0.1:{self.data_web}",
            dfs_datanode_ipc_address=f"127.0.0.1:{self.ipc}",
            dfs_datanode_hostname="127.0.0.1",
            dfs_namenode_safemode_extension=0,
            dfs_namenode_fs__limits_min__block__size=1024,
            dfs_blocksize=1 << 20,
            dfs_heartbeat_interval=1,
            dfs_namenode_heartbeat_recheck__interval=1000,
        )
        self.call([*self.hadoop("hdfs.server.namenode.NameNode"), "-format", "-force", "-nonInteractive"])

    def hadoop(self, program: str) -> list[str]:
        return self.java("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", f"org.apache.hadoop.{program}",
                         classpath=f"{self.conf}:")

    def start(self):
        for name, port, program in (("namenode", self.port, "namenode.NameNode"),
                                    ("datanode", self.ipc, "datanode.DataNode")):
            if name not in self.processes: self.run(name, port, self.hadoop(f"hdfs.server.{program}"))
        until = time.monotonic() + 90
        while not self.ready():
            assert time.monotonic() < until, "the DataNode has not reported its blocks"
            time.sleep(.1)

    def ready(self) -> bool:
        "Whether the NameNode is out of safe mode and knows the DataNode, as it says of itself."
        about = {}
        for name in ("NameNodeInfo", "FSNamesystemState"):
            with urlopen(f"http://127.0.0.1:{self.web}/jmx?qry=Hadoop:service=NameNode,name={name}") as answer:
                for bean in json.load(answer)["beans"]: about |= bean
        return about.get("Safemode") == "" and about.get("NumLiveDataNodes") == 1

    def admin(self, *words) -> str:
        "Call `hdfs dfsadmin`, and return what it says."
        return subprocess.run([*self.hadoop("hdfs.tools.DFSAdmin"), *words], check=True, capture_output=True,
                              cwd=self.folder, text=True).stdout


# What Cassandra reaches into, of Java's own modules
EXPORTS = [
    "java.base/java.lang.ref", "java.base/jdk.internal.misc", "java.base/sun.nio.ch",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi", "java.rmi/sun.rmi.registry", "java.rmi/sun.rmi.server",
    "java.sql/java.sql", "jdk.attach/sun.tools.attach", "jdk.compiler/com.sun.tools.javac.file",
    "jdk.unsupported/sun.misc",
]
OPENS = [
    "java.base/java.io", "java.base/java.lang", "java.base/java.lang.module", "java.base/java.lang.reflect",
    "java.base/java.nio", "java.base/java.util", "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic", "java.base/jdk.internal.loader", "java.base/jdk.internal.math",
    "java.base/jdk.internal.module", "java.base/jdk.internal.ref", "java.base/jdk.internal.reflect",
    "java.base/jdk.internal.util.jar", "java.base/sun.nio.ch",
    "jdk.management/com.sun.management.internal",
]


class Cassandra(Jvm):
    "Cassandra 5: one node, which asks for a password; `cassandra` with the password `cassandra` may do all."
    profile = "cassandra"

    def __init__(self, **more):  # of cassandra.yaml
        self.port, self.storage, self.more = free_port(), free_port(), more
        super().__init__()

    @property
    def address(self) -> str: return f"127.0.0.1:{self.port}"

    def prepare(self):
        seeds = [{"class_name": "org.apache.cassandra.locator.SimpleSeedProvider",
                  "parameters": [{"seeds": f"127.0.0.1:{self.storage}"}]}]
        said = {
            "cluster_name": "one", "num_tokens": 4, "partitioner": "org.apache.cassandra.dht.Murmur3Partitioner",
            "data_file_directories": [str(self.folder/"data")],
            "commitlog_sync": "batch", "seed_provider": seeds,  # what is acknowledged survives a SIGKILL
            "listen_address": "127.0.0.1", "storage_port": self.storage, "rpc_address": "127.0.0.1",
            "native_transport_port": self.port, "endpoint_snitch": "SimpleSnitch",
            "authenticator": "PasswordAuthenticator", "authorizer": "CassandraAuthorizer",
            "role_manager": "CassandraRoleManager",
        } | {f"{name}_directory": str(self.folder/name)
             for name in ("commitlog", "saved_caches", "hints", "cdc_raw")} | self.more
        (self.folder/"cassandra.yaml").write_text(json.dumps(said))  # which is YAML too
        (self.folder/"logback.xml").write_text(
            '<configuration><appender name="out" class="ch.qos.logback.core.ConsoleAppender"><encoder><pattern>%d'
            ' %-5level %logger{20} %msg%n</pattern></encoder></appender><root level="INFO"><appender-ref ref="out"/>'
            "</root></configuration>"
        )

    def start(self):
        if "cassandra" in self.processes: return
        modules = [w for flag, names in (("--add-exports", EXPORTS), ("--add-opens", OPENS)) for n in names
                   for w in (flag, f"{n}=ALL-UNNAMED")]
        said = {"cassandra.config": f"file://{self.folder}/cassandra.yaml", "cassandra.storagedir": self.folder,
                "logback.configurationFile": f"file://{self.folder}/logback.xml", "cassandra-foreground": "yes",
                "cassandra.skip_wait_for_gossip_to_settle": 0, "cassandra.ring_delay_ms": 0,
                "cassandra.superuser_setup_delay_ms": 0}
        self.run("cassandra", self.port, self.java(
            "-Xms512m", "-Xmx1g", *modules, f"-javaagent:{next(self.jars.glob('jamm-*.jar'))}",
            *(f"-D{k}={v}" for k, v in said.items()), "org.apache.cassandra.service.CassandraDaemon"))

    def session(self, user: str = "cassandra", password: str = "cassandra"):  # noqa: S107
        "A session of the driver; `session.cluster.shutdown()` ends it."
        from cassandra.auth import PlainTextAuthProvider
        from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
        from cassandra.policies import RoundRobinPolicy
        profile = ExecutionProfile(load_balancing_policy=RoundRobinPolicy(), request_timeout=60)
        until = time.monotonic() + 60
        while True:  # the first role is made a moment after it listens
            cluster = Cluster(["127.0.0.1"], self.port, auth_provider=PlainTextAuthProvider(user, password),
                              protocol_version=4, execution_profiles={EXEC_PROFILE_DEFAULT: profile})
            try: return cluster.connect()
            except NoHostAvailable:
                cluster.shutdown()
                if time.monotonic() > until: raise
                time.sleep(.5)
