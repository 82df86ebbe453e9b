using System.Globalization;
using Megatron.Client.Cluster;
using Megatron.Client.Jobs;
using Megatron.Compute.Configuration;
using Megatron.Grains.Jobs;
using Megatron.Silo;

namespace Megatron.Client.Cli.Commands;

/// <summary><c>megatron jobs</c>: shows, follows and stops the jobs of a cluster.</summary>
/// <param name="console">Where to print.</param>
/// <param name="time">Clock of retries.</param>
public sealed class JobsCommand(CommandConsole console, TimeProvider time) : IVerbCommand
{
    /// <summary>How it is called.</summary>
    public const string Usage = "megatron jobs show|watch|cancel JOB --cluster redis://host:port [--option value ...]";

    /// <summary>What it reads.</summary>
    public static IReadOnlyList<WordOption> Options { get; } =
    [
        new("cluster", "redis://host:port", "Redis of the cluster."),
        new("output", "text|json", "Form of what is printed."),
        new("no_save", "", "cancel: end without a checkpoint; given a second time, at once."),
    ];

    /// <inheritdoc/>
    public async Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        var words = WordOptions.Parse(options.Words, Options);
        Func<ClusterConnection, string, Task<int>> act = words.Positional switch
        {
            ["show", _] => (cluster, id) => ShowAsync(cluster, id),
            ["watch", _] => (cluster, id) => WatchAsync(cluster, id, words.Choice("output", "text", "json"), cancellationToken),
            ["cancel", _] => (cluster, id) => CancelAsync(cluster, id, !words.Flag("no_save")),
            _ => throw new ConfigException("CFG012", $"megatron jobs {string.Join(' ', words.Positional)} is not known; use {Usage}."),
        };
        string cluster = words.Required("cluster", "give redis://host:port of the cluster's Redis");
        await using var connection = await ClusterConnection.OpenAsync(ClusterAddress.Parse(cluster), time, cancellationToken);
        return await act(connection, words.Positional[1]);
    }

    private async Task<int> ShowAsync(ClusterConnection cluster, string id)
    {
        var status = await RequireAsync(cluster, id);
        Row("job", status.JobId);
        Row("name", status.Name);
        Row("phase", status.Phase.ToString().ToLowerInvariant());
        Row("attempt", status.Attempt.ToString(CultureInfo.InvariantCulture));
        Row("step", status.LastIteration.ToString(CultureInfo.InvariantCulture));
        if (status.Checkpoint is { } checkpoint) Row("checkpoint", checkpoint.Folder);
        if (status.Outcome is { } outcome) Row("outcome", string.Create(CultureInfo.InvariantCulture, $"{outcome.Message} (exit code {outcome.ExitCode})"));
        return ExitCode.Ok;
    }

    private async Task<int> WatchAsync(ClusterConnection cluster, string id, string form, CancellationToken cancellation)
    {
        await RequireAsync(cluster, id);
        using var view = JobView.ForOnlooker(console, form);
        using var signals = StopSignals.OfThisProcess();
        using var stop = cancellation.Register(signals.Raise);
        int? exitCode = await new ClusterFollower(cluster.Grains.GetGrain<IJobGrain>(id), view.Console, time).FollowAsync(signals.StopRequested, signals.Abort);
        if (exitCode is null) Detachment.Say(view, id, cluster.Address);
        return exitCode ?? ExitCode.Ok;
    }

    private async Task<int> CancelAsync(ClusterConnection cluster, string id, bool save)
    {
        await RequireAsync(cluster, id);
        var status = await cluster.Grains.GetGrain<IJobGrain>(id).Cancel(save);
        console.Out.WriteLine(status.Outcome is { } outcome
            ? $"job {id} has ended: {outcome.Message}"
            : $"job {id} is asked to stop{(save ? " and save" : "")}; follow it with megatron jobs watch {id} --cluster {cluster.Address}");
        return ExitCode.Ok;
    }

    private static async Task<JobStatus> RequireAsync(ClusterConnection cluster, string id)
    {
        var status = await cluster.Grains.GetGrain<IJobGrain>(id).GetStatus();
        return status.Phase is not JobPhase.Unknown
            ? status
            : throw new ConfigException("JOB002", $"The cluster {cluster.Address} knows no job {id}; megatron jobs list shows those it knows.");
    }

    private void Row(string name, string text) => console.Out.WriteLine($"{name,-12}{text}");
}
