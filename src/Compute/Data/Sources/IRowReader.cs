namespace Megatron.Compute.Data.Sources;

/// <summary>One row as it stands in its file.</summary>
/// <param name="Path">The file as the user wrote it.</param>
/// <param name="Number">0-based number of the row; blank lines are no rows.</param>
/// <param name="Line">1-based line that it begins in, or the row's number from 1 where a format has no lines.</param>
/// <param name="Json">The UTF-8 text of a JSON value; owned by the row.</param>
/// <param name="Problem">Why its bytes cannot be read as a row; null when they can.</param>
internal readonly record struct SourceRow(string Path, int Number, int Line, ReadOnlyMemory<byte> Json, RowProblem? Problem)
{
    /// <summary>Where the row stands, for messages: <c>rows.jsonl:12</c>.</summary>
    public string Position => FormattableString.Invariant($"{Path}:{Line}");

    /// <summary>Offset of <see cref="Json"/> in the file when these are the file's own bytes; −1 when they are not.</summary>
    public long Offset { get; init; } = -1;
}

/// <summary>
/// The rows of one file, one after another. Memory is bounded by the longest row (<see cref="ByteReader.MaxRowBytes"/>), not by the file.
/// </summary>
internal interface IRowReader : IDisposable
{
    /// <summary>Reads the next row; false at the end of the file.</summary>
    /// <exception cref="Configuration.ConfigException">The rest of the file cannot be read at all.</exception>
    bool TryRead(out SourceRow row);
}
