using System.Diagnostics.CodeAnalysis;

namespace Megatron.Compute.Data.Sources;

/// <summary>Rows that were taken out of a file as a whole (json, csv, parquet), as JSON text in memory.</summary>
/// <param name="path">The path as the user wrote it.</param>
/// <param name="rows">The rows with the 1-based line, or the row number where a format has no lines.</param>
internal sealed class MemoryRows(string path, IReadOnlyList<(int Line, ReadOnlyMemory<byte> Json)> rows) : IRowSource
{
    /// <inheritdoc/>
    public int Count => rows.Count;

    /// <inheritdoc/>
    public string Position(int index) => $"{path}:{rows[index].Line}";

    /// <inheritdoc/>
    public bool TryRead(int index, out ReadOnlyMemory<byte> json, [NotNullWhen(false)] out RowProblem? problem)
    {
        json = rows[index].Json;
        problem = null;
        return true;
    }

    /// <inheritdoc/>
    public void Dispose() { }
}
