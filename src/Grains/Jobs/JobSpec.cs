namespace Megatron.Grains.Jobs;

/// <summary>
/// What a client submits: everything a job needs, fixed for its life. Two specs are equal when all fields are; that is what makes a repeated
/// submission recognisable.
/// </summary>
[GenerateSerializer, Immutable]
public sealed record JobSpec
{
    /// <summary>Key of the job grain. Submitting the same id twice is one job.</summary>
    [Id(0)] public required string JobId { get; init; }

    /// <summary>Name for people, e.g. the run folder's name.</summary>
    [Id(1)] public required string Name { get; init; }

    /// <summary>Canonical <c>TrainingConfig</c> JSON; handed to the ranks unread.</summary>
    [Id(2)] public required string ConfigJson { get; init; }

    /// <summary>Number of ranks, all nodes together (NPROC_PER_NODE on one node).</summary>
    [Id(3)] public required int WorldSize { get; init; }

    /// <summary>Pipeline-parallel size: ranks [s·W/P, (s+1)·W/P) form stage s.</summary>
    [Id(4)] public int PipelineSize { get; init; } = 1;

    /// <summary>The run folder: checkpoints, args.json, logging.jsonl.</summary>
    [Id(5)] public required string OutputFolder { get; init; }

    /// <summary>
    /// How often the ranks may be started again after operating faults, with no checkpoint committed in between, before the job fails; 0: any
    /// fault ends it. The loss of a silo does not count.
    /// </summary>
    [Id(6)] public int MaxRestarts { get; init; }

    /// <summary>
    /// True when the job waits for devices and goes on with fewer replicas after a loss, as on a cluster whose silos come and go; false when too
    /// few devices are the user's mistake, as on one machine.
    /// </summary>
    [Id(7)] public bool IsElastic { get; init; }

    /// <summary>Sizes of the grid; null: <see cref="PipelineSize"/> stages and nothing else.</summary>
    [Id(8)] public JobLayout? Layout { get; init; }

    /// <summary>True when the ranks keep snapshots in memory, so that they are looked for after a fault.</summary>
    [Id(9)] public bool TakesSnapshots { get; init; }

    /// <summary><see cref="Layout"/>, or the layout of a job that has stages only.</summary>
    public JobLayout Grid => Layout ?? new JobLayout { PipelineSize = PipelineSize };
}
