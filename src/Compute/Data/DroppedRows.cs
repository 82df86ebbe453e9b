using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Sources;

namespace Megatron.Compute.Data;

/// <summary>
/// Rows of one data set that are left out. With <c>strict</c> the first ends the run; else they are counted by reason, the first ten are shown,
/// and a file that seems damaged (more than 1 % of its rows unreadable) ends the run after all.
/// </summary>
internal sealed class DroppedRows(string path, bool strict)
{
    private const int NumShown = 10;
    private const int NumErrors = 20;
    private const double MaxUnreadableShare = 0.01;

    private readonly Dictionary<(string Code, string Reason), int> _counts = [];
    private readonly List<RowProblem> _first = [];
    private readonly List<RowProblem> _unreadable = [];
    private int _numUnreadable;

    /// <summary>Rows left out so far.</summary>
    public int Count { get; private set; }

    /// <summary>Takes up one row.</summary>
    /// <exception cref="ConfigException">The problem itself, with <c>strict</c>.</exception>
    public void Add(RowProblem problem)
    {
        if (strict) throw new ConfigException([problem.ToError()]);
        Count++;
        var key = (problem.Code, problem.Reason);
        _counts[key] = _counts.GetValueOrDefault(key) + 1;
        if (_first.Count < NumShown) _first.Add(problem);
        if (!problem.IsUnreadable) return;
        _numUnreadable++;
        if (_unreadable.Count < NumErrors) _unreadable.Add(problem);
    }

    /// <summary>Judges the file once all its rows are known.</summary>
    /// <exception cref="ConfigException">More than 1 % of the rows unreadable (the errors, 20 at most), or no usable row (DATA021).</exception>
    public void Check(int numRows)
    {
        if (_numUnreadable > numRows * MaxUnreadableShare)
        {
            var errors = _unreadable.ConvertAll(problem => problem.ToError());
            errors.Add(new ConfigError(errors[0].Code, $"{path}: {_numUnreadable} of {numRows} rows cannot be read, more than 1 %; correct the file."));
            throw new ConfigException(errors);
        }
        if (Count < numRows) return;
        var all = _first.ConvertAll(problem => problem.ToError());
        all.Add(new ConfigError("DATA021", $"{path}: none of its {numRows} rows can be used ({Reasons()}); correct the file."));
        throw new ConfigException(all);
    }

    /// <summary>The first ten rows and one summary line; nothing when no row was left out.</summary>
    public IEnumerable<string> Lines(int numRows)
    {
        foreach (var problem in _first) yield return $"row left out: {problem}";
        if (Count > 0) yield return $"{path}: {Count} of {numRows} rows left out ({Reasons()})";
    }

    private string Reasons() => string.Join(", ", _counts.OrderByDescending(pair => pair.Value).ThenBy(pair => pair.Key.Code, StringComparer.Ordinal)
        .Select(pair => $"{pair.Value} × {pair.Key.Reason} {pair.Key.Code}"));
}
