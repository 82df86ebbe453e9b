using System.Globalization;
using System.Text.Json;
using Megatron.Client.Cluster;
using Megatron.Client.Jobs;
using Megatron.Compute.Configuration;
using Megatron.Grains.Experts;
using Megatron.Grains.Jobs;
using Megatron.Silo;

namespace Megatron.Client.Cli.Commands;

/// <summary><c>megatron jobs</c>: lists, shows, follows, stops and resumes the jobs of a cluster.</summary>
/// <param name="console">Where to print.</param>
/// <param name="time">Clock of retries.</param>
public sealed class JobsCommand(CommandConsole console, TimeProvider time) : IVerbCommand
{
    /// <summary>How it is called.</summary>
    public const string Usage = "megatron jobs list | show|watch|logs|cancel|resume JOB --cluster redis://host:port [--option value ...]";

    /// <summary>What it reads.</summary>
    public static IReadOnlyList<WordOption> Options { get; } =
    [
        new("cluster", "redis://host:port", "Redis of the cluster."),
        new("output", "text|json", "list, show, watch, resume: form of what is printed."),
        new("no_save", "", "cancel: end without a checkpoint; given a second time, at once."),
        new("ledger", "", "logs: one line for each optimizer step instead of one for each log interval."),
    ];

    /// <inheritdoc/>
    public async Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        var words = WordOptions.Parse(options.Words, Options);
        string form = words.Choice("output", "text", "json");
        bool save = !words.Flag("no_save"), wantsLedger = words.Flag("ledger");
        Func<ClusterConnection, Task<int>> act = words.Positional switch
        {
            ["list"] => cluster => ListAsync(cluster, form),
            ["show", var id] => cluster => ShowAsync(cluster, id, form),
            ["watch", var id] => cluster => WatchAsync(cluster, id, form, cancellationToken),
            ["logs", var id] => cluster => LogsAsync(cluster, id, wantsLedger, cancellationToken),
            ["cancel", var id] => cluster => CancelAsync(cluster, id, save),
            ["resume", var id] => cluster => ResumeAsync(cluster, id, form, cancellationToken),
            _ => throw new ConfigException("CFG012", $"megatron jobs {string.Join(' ', words.Positional)} is not known; use {Usage}."),
        };
        string address = words.Required("cluster", "give redis://host:port of the cluster's Redis");
        await using var connection = await ClusterConnection.OpenAsync(ClusterAddress.Parse(address), time, cancellationToken);
        return await connection.AskAsync(act);
    }

    private async Task<int> ListAsync(ClusterConnection cluster, string form)
    {
        var jobs = await cluster.Grains.GetGrain<IJobDirectory>(IJobDirectory.Key).List();
        if (form == "json")
        {
            foreach (var job in jobs)
                console.Out.WriteLine(JsonSerializer.Serialize(new
                {
                    job = job.JobId, phase = Word(job.Phase), attempt = job.Attempt, step = job.LastIteration, ranks = job.NumRanks,
                    submitted = job.SubmittedAt, ended = job.EndedAt, reason = job.Reason,
                }));
            return ExitCode.Ok;
        }
        var table = new TextTable("job", "phase", "step", "ranks", "attempt", "submitted", "reason");
        foreach (var job in jobs)
            table.Add(job.JobId, Word(job.Phase), Number(job.LastIteration), Number(job.NumRanks), Number(job.Attempt), ConsoleLines.Time(job.SubmittedAt.ToLocalTime()), job.Reason);
        table.Write(console.Out, console.Columns);
        return ExitCode.Ok;
    }

    private async Task<int> ShowAsync(ClusterConnection cluster, string id, string form)
    {
        var status = await RequireAsync(cluster, id);
        var experts = await cluster.Grains.GetGrain<IExpertShardGrain>(id).GetLoad();
        if (form == "json")
        {
            console.Out.WriteLine(JsonSerializer.Serialize(new
            {
                job = status.JobId, phase = Word(status.Phase), attempt = status.Attempt, step = status.LastIteration, checkpoint = status.Checkpoint?.Folder,
                folder = status.Spec?.OutputFolder, exit_code = status.Outcome?.ExitCode, reason = status.Reason,
                stages = status.Stages.Select(stage => new
                {
                    stage = stage.Stage, ranks = stage.NumRanks, step = stage.Iteration, step_time_ms = stage.StepTime.TotalMilliseconds,
                    compute_time_ms = stage.ComputeTime?.TotalMilliseconds, bubble = stage.BubbleFraction, slow_rank = stage.Straggler?.Rank,
                }),
                experts = experts?.Shards.Select(load => new
                {
                    first = load.Shard.FirstExpert, end = load.Shard.EndExpert, ranks = load.Shard.Ranks.ToArray(), tokens = load.Tokens, imbalance = load.Imbalance,
                }),
                tokens_per_expert = experts?.TokensPerExpert.ToArray(),
            }));
            return ExitCode.Ok;
        }
        Row("job", status.JobId);
        Row("phase", Word(status.Phase));
        Row("reason", status.Reason);
        Row("attempt", Number(status.Attempt));
        Row("step", Number(status.LastIteration));
        if (status.Plan is { } plan && !status.IsTerminal())
            Row("ranks", string.Join(", ", plan.Ranks.Select(rank => string.Create(CultureInfo.InvariantCulture, $"{rank.Rank} on {rank.Device.GrainKey}"))));
        if (status.Checkpoint is { } checkpoint) Row("checkpoint", checkpoint.Folder);
        if (status.Spec is { } spec) Row("folder", spec.OutputFolder);
        Row("submitted", ConsoleLines.Time(status.SubmittedAt.ToLocalTime()));
        if (status.EndedAt is { } ended) Row("ended", ConsoleLines.Time(ended.ToLocalTime()));
        if (status.Outcome is { } outcome) Row("exit code", Number(outcome.ExitCode));
        if (!status.Stages.IsEmpty) ShowTable(JobTables.Stages(status.Spec?.Grid, status.Stages));
        if (experts is not null) ShowTable(JobTables.Experts(experts));
        return ExitCode.Ok;
    }

    private async Task<int> WatchAsync(ClusterConnection cluster, string id, string form, CancellationToken cancellation)
    {
        var status = await RequireAsync(cluster, id);
        using var view = JobView.ForOnlooker(console, form, status.Spec);
        return await FollowAsync(cluster, id, view, cancellation);
    }

    private async Task<int> LogsAsync(ClusterConnection cluster, string id, bool wantsLedger, CancellationToken cancellation)
    {
        var status = await RequireAsync(cluster, id);
        string path = Path.Combine(status.Spec?.OutputFolder ?? "", wantsLedger ? JobLedger.FileName : "logging.jsonl");
        if (!File.Exists(path))
            throw new ConfigException("JOB004", $"The log {path} of job {id} is not there; it is written with the first step, below a folder that all nodes share.");
        await foreach (string line in File.ReadLinesAsync(path, cancellation)) console.Out.WriteLine(line);
        return ExitCode.Ok;
    }

    private async Task<int> CancelAsync(ClusterConnection cluster, string id, bool save)
    {
        var before = await RequireAsync(cluster, id);
        var status = before.IsTerminal() ? before : await cluster.Grains.GetGrain<IJobGrain>(id).Cancel(save);
        console.Out.WriteLine(status.Outcome is { } outcome
            ? $"job {id} has ended: {outcome.Message}"
            : $"job {id} is asked to stop{(save ? " and save" : "")}; follow it with megatron jobs watch {id} --cluster {cluster.Address}");
        return ExitCode.Ok;
    }

    /// <summary>A job that ended early goes on as a new job, in the same folder, from its newest checkpoint.</summary>
    private async Task<int> ResumeAsync(ClusterConnection cluster, string id, string form, CancellationToken cancellation)
    {
        var status = await RequireAsync(cluster, id);
        if (!status.IsTerminal()) throw new ConfigException("JOB003", $"Job {id} has not ended ({Word(status.Phase)}); follow it with megatron jobs watch {id}.");
        if (status.Phase is JobPhase.Completed) throw new ConfigException("JOB003", $"Job {id} has done all its steps; submit a new job with more.");
        var old = status.Spec ?? throw new ConfigException("JOB002", Unknown(cluster, id));
        var spec = JobSpecs.Resumed(old, await NextIdAsync(cluster, id), time);
        using var view = JobView.ForOnlooker(console, form, spec);
        var answer = await cluster.Grains.GetGrain<IJobGrain>(spec.JobId).Submit(spec);
        if (!answer.Accepted) throw new ConfigException("JOB001", answer.Message);
        view.Say($"job {id} goes on as {spec.JobId}");
        return await FollowAsync(cluster, spec.JobId, view, cancellation);
    }

    private static async Task<string> NextIdAsync(ClusterConnection cluster, string id)
    {
        string stem = id.LastIndexOf(".r", StringComparison.Ordinal) is var at and > 0 && int.TryParse(id[(at + 2)..], out _) ? id[..at] : id;
        for (int number = 2; ; number++)
        {
            string next = string.Create(CultureInfo.InvariantCulture, $"{stem}.r{number}");
            if ((await cluster.Grains.GetGrain<IJobGrain>(next).GetStatus()).Phase is JobPhase.Unknown) return next;
        }
    }

    private async Task<int> FollowAsync(ClusterConnection cluster, string id, JobView view, CancellationToken cancellation)
    {
        using var signals = StopSignals.OfThisProcess();
        using var stop = cancellation.Register(signals.Raise);
        int? exitCode = await new ClusterFollower(cluster.Grains.GetGrain<IJobGrain>(id), view.Console, time).FollowAsync(signals.StopRequested, signals.Abort);
        if (exitCode is null) Detachment.Say(view, id, cluster.Address);
        return exitCode ?? ExitCode.Ok;
    }

    private void ShowTable(TextTable table)
    {
        console.Out.WriteLine();
        table.Write(console.Out, console.Columns);
    }

    private static async Task<JobStatus> RequireAsync(ClusterConnection cluster, string id)
    {
        var status = await cluster.Grains.GetGrain<IJobGrain>(id).GetStatus();
        return status.Phase is not JobPhase.Unknown ? status : throw new ConfigException("JOB002", Unknown(cluster, id));
    }

    private static string Unknown(ClusterConnection cluster, string id) =>
        $"The cluster {cluster.Address} knows no job {id}; megatron jobs list shows those it knows.";

    private static string Word(JobPhase phase) => phase.ToString().ToLowerInvariant();

    private static string Number(long number) => number.ToString(CultureInfo.InvariantCulture);

    private void Row(string name, string text) => console.Out.WriteLine($"{name,-12}{text}");
}
