using System.Diagnostics.CodeAnalysis;

namespace Megatron.Compute.Data.Sources;

/// <summary>The rows of one file, each readable by number as the UTF-8 text of a JSON value. Reading is safe from several threads.</summary>
internal interface IRowSource : IDisposable
{
    /// <summary>Rows of the file, blank lines not counted.</summary>
    int Count { get; }

    /// <summary>Where row <paramref name="index"/> stands, for messages: <c>rows.jsonl:12</c>.</summary>
    string Position(int index);

    /// <summary>Reads a row; false with the problem when its bytes cannot be text.</summary>
    bool TryRead(int index, out ReadOnlyMemory<byte> json, [NotNullWhen(false)] out RowProblem? problem);
}
