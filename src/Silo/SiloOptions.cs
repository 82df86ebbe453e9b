namespace Megatron.Silo;

/// <summary>What a silo is told at its start.</summary>
public sealed record SiloOptions
{
    /// <summary>Name of the node in the cluster; no slash.</summary>
    public string NodeName { get; init; } = "local";

    /// <summary>Indices of the devices this silo owns: one rank worker each.</summary>
    public required IReadOnlyCollection<int> Devices { get; init; }

    /// <summary>Folder of the rolling JSON log files; null writes none. The folder is made at the start of the silo.</summary>
    public string? LogFolder { get; init; }

    /// <summary>How fast other silos are declared dead.</summary>
    public MembershipProfile Membership { get; init; } = MembershipProfile.Tight;

    /// <summary>Options of a silo for one local job: devices 0 to <paramref name="worldSize"/> − 1.</summary>
    public static SiloOptions ForLocalJob(int worldSize, string? logFolder) => new() { Devices = [.. Enumerable.Range(0, worldSize)], LogFolder = logFolder };
}
