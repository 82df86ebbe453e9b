using System.Diagnostics;
using System.Globalization;
using System.Text.RegularExpressions;
using Megatron.Client.Cli;
using Megatron.Testing;
using Megatron.Testing.Processes;
using YamlDotNet.Serialization;

namespace Megatron.EndToEnd.Tests;

/// <summary>
/// The files of docker/ and docs/deploy.md where no container engine runs: what they promise is read from them, and each of their commands is run as
/// it stands, with only addresses, ports and folders exchanged.
/// </summary>
public sealed class DeployTests
{
    private static readonly TimeSpan patience = TimeSpan.FromSeconds(120);

    private static CancellationToken Cancellation => TestContext.Current.CancellationToken;

    [Fact]
    public void Dockerfile_PinsImagesAndEndsUnprivileged()
    {
        var stages = Stages();
        Assert.Equal(["source", "build-cpu", "build-cuda", "base", "silo-cpu", "silo-cuda", "client"], stages.Keys);
        foreach (var (name, stage) in stages)
        {
            Assert.True(stages.ContainsKey(stage.From) || Regex.IsMatch(stage.From, @"^mcr\.microsoft\.com/dotnet/(sdk|runtime):10\.0-noble$"), $"{name} starts from {stage.From}");
            Assert.DoesNotContain(stage.Lines, line => line.StartsWith("ADD ", StringComparison.Ordinal));
            foreach (var copy in stage.Lines.Where(line => line.StartsWith("COPY ", StringComparison.Ordinal) && !line.Contains("--from=", StringComparison.Ordinal)))
                Assert.All(copy.Split(' ')[1..^1], path => Assert.True(Path.Exists(Path.Combine(Repository.Root, path)), $"{name} copies {path}"));
        }
        Assert.Contains("USER $APP_UID", stages["base"].Lines);
        foreach (var name in (string[])["silo-cpu", "silo-cuda", "client"])
        {
            Assert.Equal("base", stages[name].From);
            Assert.DoesNotContain(stages[name].Lines, line => line.StartsWith("USER ", StringComparison.Ordinal));
            Assert.Contains(stages[name].Lines, line => line.StartsWith("ENTRYPOINT [\"dotnet\", \"/app/megatron.dll\"", StringComparison.Ordinal));
        }
        Assert.All((string[])["silo-cpu", "silo-cuda"], name => Assert.Contains(stages[name].Lines, line => line.StartsWith("HEALTHCHECK ", StringComparison.Ordinal)));
    }

    [Theory]
    [InlineData("compose.cpu.yml")]
    [InlineData("compose.gpu.yml")]
    public void Compose_ContainersAreHealthCheckedUnprivilegedAndReadOnly(string file)
    {
        var (services, volumes) = Compose(file);
        foreach (var (name, service) in services)
        {
            Assert.True(service.GetValueOrDefault("read_only") is "true", $"{name} can write to its root file system");
            Assert.Equal(["ALL"], Words(service["cap_drop"]));
            Assert.Equal(["no-new-privileges:true"], Words(service["security_opt"]));
            if (name != "job") Assert.True(service.ContainsKey("healthcheck") && service.ContainsKey("restart"), $"{name} has no health check or restart policy");
            if (service.GetValueOrDefault("image") is string image) Assert.Matches(@"^[a-z]+:\d+\.\d+\.\d+-[a-z]+$", image);
            else Assert.Contains((string)((Dictionary<object, object>)service["build"])["target"], Stages().Keys);
            if (service.GetValueOrDefault("depends_on") is Dictionary<object, object> needed) Assert.All(needed.Keys, other => Assert.Contains((string)other, services.Keys));
            foreach (var volume in Words(service["volumes"]).Where(volume => !volume.StartsWith('.'))) Assert.Contains(volume.Split(':')[0], volumes);
            Assert.DoesNotContain("privileged", service.Keys);
        }
        Assert.Equal("redis", services["redis"]["user"]);
    }

    [Theory]
    [InlineData("compose.cpu.yml")]
    [InlineData("compose.gpu.yml")]
    public async Task Compose_EachCommandRunsOutsideAContainer(string file)
    {
        Assert.SkipUnless(RedisServer.IsInstalled, RedisServer.SkipReason);
        using var work = new Workspace(rows: 40);
        var (services, _) = Compose(file);
        int[] ports = FreePorts.Take(1 + 2 * services.Count);
        string redisPort = Text(ports[0]);
        string[] Local(IEnumerable<string> words) =>
            [.. words.Select(word => word.Replace("redis://redis:6379", $"redis://127.0.0.1:{redisPort}", StringComparison.Ordinal).Replace("/data", work.Root, StringComparison.Ordinal))];

        var redis = services["redis"];
        await using var server = ProgramProcess.Start(Words(redis["command"])[0], [.. Words(redis["command"])[1..], "--port", redisPort, "--bind", "127.0.0.1", "--dir", work.Root]);
        await server.WaitForLineAsync("redis", line => line.Text.Contains("Ready to accept connections", StringComparison.Ordinal), patience, Cancellation);
        Assert.Equal(0, await RunHealthCheckAsync(redis, word => word == "redis-cli" ? ["redis-cli", "-p", redisPort] : [word]));

        var silos = new List<ProgramProcess>();
        try
        {
            foreach (var (name, service) in services.Where(service => service.Key.StartsWith("silo-", StringComparison.Ordinal)))
            {
                string siloPort = Text(ports[1 + 2 * silos.Count]), gatewayPort = Text(ports[2 + 2 * silos.Count]);
                string Port(string word) => word switch { "11111" => siloPort, "30000" => gatewayPort, _ => word == name ? "127.0.0.1" : word };
                var words = Words(service["command"]);
                var changed = words.Select((word, index) => words[Math.Max(0, index - 1)] == "--node_name" ? word : Port(word));
                var silo = ProgramProcess.StartMegatron(["silo", .. Local(changed)], new Dictionary<string, string?> { ["NPROC_PER_NODE"] = "1" });
                silos.Add(silo);
                await silo.WaitForLineAsync(name, line => line.Text.Contains(" is ready", StringComparison.Ordinal), patience, Cancellation);
                Assert.Equal(0, await RunHealthCheckAsync(service, word => [word.Replace("/30000", "/" + gatewayPort, StringComparison.Ordinal)]));
            }
            Assert.NotEmpty(silos);

            var job = services["job"];
            var environment = ((Dictionary<object, object>)job["environment"]).ToDictionary(pair => (string)pair.Key, pair => (string?)pair.Value);
            await using var console = ProgramProcess.StartMegatron([.. Local(Words(job["command"])), "--train_iters", "2", "--max_length", "128"], environment);
            Assert.True(await console.ExitAsync(patience, Cancellation) == ExitCode.Ok, console.Transcript + string.Join('\n', silos.Select(silo => silo.Transcript)));
        }
        finally
        {
            foreach (var silo in silos) await silo.DisposeAsync();
        }
    }

    [Fact]
    public async Task Systemd_UnitIsCompleteAndItsCommandRuns()
    {
        Assert.SkipUnless(RedisServer.IsInstalled, RedisServer.SkipReason);
        var unit = Block("ini").Split('\n').Where(line => line.Contains('=', StringComparison.Ordinal) && line[0] != '#').Select(line => line.Split('=', 2)).ToLookup(pair => pair[0], pair => pair[1]);
        Assert.All((string[])["Description", "User", "ExecStart", "Restart", "KillSignal", "TimeoutStopSec", "NoNewPrivileges", "ProtectSystem", "WantedBy"], key => Assert.Single(unit[key]));
        Assert.NotEqual("root", unit["User"].Single());

        await using var redis = await RedisServer.StartAsync(Cancellation);
        using var folder = new TemporaryFolder();
        int[] ports = FreePorts.Take(2);
        string[] words = unit["ExecStart"].Single().Replace("redis.example:6379", $"127.0.0.1:{Text(redis.Port)}", StringComparison.Ordinal).Replace("11111", Text(ports[0]), StringComparison.Ordinal)
            .Replace("30000", Text(ports[1]), StringComparison.Ordinal).Replace("/var/lib/megatron", folder.Root, StringComparison.Ordinal).Split(' ');
        Assert.Equal(["/usr/bin/dotnet", "/opt/megatron/megatron.dll", "silo"], words[..3]);
        await using var silo = ProgramProcess.StartMegatron(words[2..], new Dictionary<string, string?> { ["NPROC_PER_NODE"] = "1" });
        await silo.WaitForLineAsync("silo", line => line.Text.Contains(" is ready", StringComparison.Ordinal), patience, Cancellation);
        Assert.Equal("SIGTERM", unit["KillSignal"].Single());
        silo.Signal(Posix.SigTerm);
        Assert.Equal(ExitCode.Ok, await silo.ExitAsync(patience, Cancellation));
    }

    /// <summary>srun and scontrol of one machine: two tasks at once, each with its node's number, as Slurm starts them.</summary>
    [Fact]
    public async Task Slurm_ScriptTrainsOnTwoNodes()
    {
        using var work = new Workspace(rows: 40);
        string Place(string name, string text)
        {
            File.WriteAllText(work.Path(name), text);
            return work.Path(name);
        }

        foreach (var (name, text) in ((string, string)[])
        [
            ("scontrol", "#!/bin/bash\nprintf '127.0.0.1\\n127.0.0.1\\n'\n"),
            ("srun", "#!/bin/bash\nset -u\nshift\npids=()\nfor node in 0 1; do SLURM_NODEID=$node \"$@\" & pids+=($!); done\ncode=0\nfor pid in \"${pids[@]}\"; do wait \"$pid\" || code=$?; done\nexit $code\n"),
        ])
            if (!OperatingSystem.IsWindows()) File.SetUnixFileMode(Place(name, text), UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
        var script = Place("job.sh", Block("bash", "#!/bin/bash"));
        var config = Place("run.yaml", $"""
            model: {work.Model}
            dataset: [{work.Rows}]
            save: {work.Path("out")}
            train_iters: 2
            global_batch_size: 4
            micro_batch_size: 2
            lr: 1e-4
            """);
        await using var job = ProgramProcess.Start("bash", [script, config], new Dictionary<string, string?>
        {
            ["PATH"] = work.Root + ":" + Environment.GetEnvironmentVariable("PATH"), ["SLURM_NNODES"] = "2", ["SLURM_JOB_NODELIST"] = "local[0-1]", ["NPROC_PER_NODE"] = "1",
            ["MASTER_PORT"] = Text(FreePorts.Take(1)[0]), ["OMP_THREAD_LIMIT"] = "1",
            ["MEGATRON"] = $"{Process.GetCurrentProcess().MainModule?.FileName} exec {Path.Combine(AppContext.BaseDirectory, "megatron.dll")}",
        });
        Assert.True(await job.ExitAsync(patience, Cancellation) == ExitCode.Ok, job.Transcript);
        Assert.Single(Directory.GetDirectories(work.Path("out"), "v*"));
    }

    private static async Task<int> RunHealthCheckAsync(Dictionary<string, object> service, Func<string, IEnumerable<string>> replace)
    {
        var words = Words(((Dictionary<object, object>)service["healthcheck"])["test"]);
        Assert.Equal("CMD", words[0]);
        string[] changed = [.. words[1..].SelectMany(replace)];
        await using var check = ProgramProcess.Start(changed[0], changed[1..]);
        return await check.ExitAsync(patience, Cancellation);
    }

    private static Dictionary<string, (string From, List<string> Lines)> Stages()
    {
        var stages = new Dictionary<string, (string From, List<string> Lines)>();
        List<string> current = [];
        foreach (var line in File.ReadLines(Path.Combine(Repository.Root, "docker", "Dockerfile")).Where(line => line.Length > 0 && line[0] != '#'))
        {
            if (Regex.Match(line, @"^FROM (\S+) AS (\S+)$") is { Success: true } from) stages[from.Groups[2].Value] = (from.Groups[1].Value, current = []);
            else current.Add(line);
        }
        return stages;
    }

    private static (Dictionary<string, Dictionary<string, object>> Services, IReadOnlyCollection<string> Volumes) Compose(string file)
    {
        using var reader = File.OpenText(Path.Combine(Repository.Root, "docker", file));
        var parser = new YamlDotNet.Core.MergingParser(new YamlDotNet.Core.Parser(reader));
        var root = new DeserializerBuilder().Build().Deserialize<Dictionary<string, object>>(parser);
        var services = ((Dictionary<object, object>)root["services"]).ToDictionary(
            pair => (string)pair.Key, pair => ((Dictionary<object, object>)pair.Value).ToDictionary(inner => (string)inner.Key, inner => inner.Value));
        return (services, [.. ((Dictionary<object, object>)root["volumes"]).Keys.Cast<string>()]);
    }

    private static string[] Words(object list) => [.. ((List<object>)list).Cast<string>()];

    /// <summary>A block of docs/deploy.md by its language and beginning.</summary>
    private static string Block(string language, string start = "") =>
        Regex.Matches(File.ReadAllText(Path.Combine(Repository.Root, "docs", "deploy.md")), $"```{language}\n(.*?)```", RegexOptions.Singleline)
            .Select(match => match.Groups[1].Value).First(text => text.StartsWith(start, StringComparison.Ordinal));

    private static string Text(int number) => number.ToString(CultureInfo.InvariantCulture);
}
