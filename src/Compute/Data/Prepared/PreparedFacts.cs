namespace Megatron.Compute.Data.Prepared;

/// <summary>Why usable rows gave no sample.</summary>
/// <param name="Code">Code of the problem.</param>
/// <param name="Reason">The kind of mistake in a few words.</param>
/// <param name="IsMisfit">True: the row does not fit the template; false: it is sound but too long or has nothing to learn.</param>
internal sealed record FateReason(string Code, string Reason, bool IsMisfit);

/// <summary>
/// What is known of a prepared source beside its entries: kept as <c>prepared.json</c> when it is complete, as <c>progress.json</c> while it is
/// being written.
/// </summary>
internal sealed record PreparedFacts
{
    /// <summary>Version of the files' form; another one is prepared anew.</summary>
    public const int CurrentFormat = 1;

    /// <summary>See <see cref="CurrentFormat"/>.</summary>
    public int Format { get; init; } = CurrentFormat;

    /// <summary>The source file.</summary>
    public required string Source { get; init; }

    /// <summary>Settings that the samples depend on, for people; <see cref="PreparedSettings.Fingerprint"/> is made of them.</summary>
    public required IReadOnlyDictionary<string, string> Settings { get; init; }

    /// <summary>Rows read from the source, unusable ones included.</summary>
    public int NumSourceRows { get; init; }

    /// <summary>Usable rows.</summary>
    public int NumRows { get; init; }

    /// <summary>Samples of all rows.</summary>
    public int NumSamples { get; init; }

    /// <summary>Tokens of all samples.</summary>
    public long NumTokens { get; init; }

    /// <summary>Bytes of the data file.</summary>
    public long NumDataBytes { get; init; }

    /// <summary>XxHash128 over all samples and rows in their order, in hexadecimal: equal hashes, equal samples, whatever the path or the machine.</summary>
    public string ContentHash { get; init; } = "";

    /// <summary>Reasons that <see cref="RowEntry.Fate"/> points at.</summary>
    public IReadOnlyList<FateReason> Reasons { get; init; } = [];

    /// <summary>Rows that could not be used at all.</summary>
    public DroppedState Dropped { get; init; } = DroppedState.None;

    /// <summary>The first rows that do not fit the template.</summary>
    public IReadOnlyList<Sources.RowProblem> FirstMisfits { get; init; } = [];

    /// <summary>The first sound rows that gave no sample.</summary>
    public IReadOnlyList<Sources.RowProblem> FirstDeleted { get; init; } = [];

    /// <summary>Things worth one line to the user and how often they were met.</summary>
    public IReadOnlyDictionary<string, int> Notices { get; init; } = new Dictionary<string, int>();
}
