using System.Globalization;
using System.Text.Json;
using Megatron.Client.Cluster;
using Megatron.Compute.Configuration;
using Megatron.Grains.Cluster;
using Megatron.Silo;

namespace Megatron.Client.Cli.Commands;

/// <summary><c>megatron cluster status</c>: the silos of a cluster, their devices and who uses them.</summary>
/// <param name="console">Where to print.</param>
/// <param name="time">Clock of retries.</param>
public sealed class ClusterCommand(CommandConsole console, TimeProvider time) : IVerbCommand
{
    /// <summary>How it is called.</summary>
    public const string Usage = "megatron cluster status --cluster redis://host:port [--output text|json]";

    /// <summary>What it reads.</summary>
    public static IReadOnlyList<WordOption> Options { get; } =
    [
        new("cluster", "redis://host:port", "Redis of the cluster."),
        new("output", "text|json", "Form of what is printed."),
    ];

    /// <inheritdoc/>
    public async Task<int> RunAsync(ParsedOptions options, CancellationToken cancellationToken)
    {
        var words = WordOptions.Parse(options.Words, Options);
        if (words.Positional is not ["status"])
            throw new ConfigException("CFG012", $"megatron cluster {string.Join(' ', words.Positional)} is not known; use {Usage}.");
        string form = words.Choice("output", "text", "json");
        string address = words.Required("cluster", "give redis://host:port of the cluster's Redis");
        await using var connection = await ClusterConnection.OpenAsync(ClusterAddress.Parse(address), time, cancellationToken);
        return await connection.AskAsync(async cluster => Show(await cluster.Grains.GetGrain<IMembershipGrain>(IMembershipGrain.Key).GetStatus(), form));
    }

    private int Show(ClusterStatus status, string form)
    {
        if (form == "json")
        {
            foreach (var silo in status.Silos)
                console.Out.WriteLine(JsonSerializer.Serialize(new
                {
                    node = silo.Node, status = silo.Status, address = silo.Address,
                    devices = silo.Devices.Select(device => new { index = device.Index, job = device.JobId }),
                }));
            return ExitCode.Ok;
        }
        var table = new TextTable("node", "status", "address", "devices");
        foreach (var silo in status.Silos)
            table.Add(silo.Node, silo.Status.ToLowerInvariant(), silo.Address, string.Join(", ", silo.Devices.Select(Device)));
        table.Write(console.Out, console.Columns);
        var devices = status.Silos.Where(silo => silo.Status == "Active").SelectMany(silo => silo.Devices).ToList();
        console.Out.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{devices.Count(device => device.JobId is null)} of {devices.Count} devices are free"));
        return ExitCode.Ok;
    }

    private static string Device(DeviceSummary device) => string.Create(CultureInfo.InvariantCulture, $"{device.Index} {(device.JobId is null ? "free" : "job " + device.JobId)}");
}
